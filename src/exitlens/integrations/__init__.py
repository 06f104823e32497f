"""exitlens inside other people's tools. Each file is imported only when it is used."""
