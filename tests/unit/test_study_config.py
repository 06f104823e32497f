"""Settings: defaults, file and command line say the same thing, and unknown names are refused with the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from exitlens.errors import ConfigError
from exitlens.studies.config import RunConfig, load_config


def test_file_and_command_line_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        '\ufeffmodel = "m"\ndata = ["a.csv", "b,c.csv"]\nonly = ["decoding", "entropy"]\nlimit = 50\nseed = 7\n'
        'decoders = ["vanilla", "sled:k=10,rate=0.5"]\nbertscore_model = "none"\nprobed_layers = [4, 8]\n',
        encoding="utf-8",
    )
    given = {
        "model": "m",
        "data": ["a.csv", "b,c.csv"],
        "only": "entropy,decoding",
        "limit": 50,
        "seed": 7,
        "decoders": "vanilla,sled:k=10,rate=0.5",
        "bertscore_model": "none",
        "probed_layers": "4,8",
        "out": None,
    }
    assert load_config(file) == load_config(None, given)
    assert load_config(file).only == ("entropy", "decoding")
    assert load_config(file, {"limit": 3}).limit == 3


def test_one_value_stands_for_a_list() -> None:
    config = load_config(
        None, {"data": "x.csv", "probed_layers": 3, "layers": "all", "decoders": "vanilla@1.2, dola:high@1.2"}
    )
    assert config.data == ("x.csv",)
    assert config.probed_layers == "3"
    assert config.layers == "all"
    assert config.decoders == ("vanilla@1.2", "dola:high@1.2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("limt = 5", "'limt': did you mean 'limit'"),
        ("limit = 0", "'limit' = 0"),
        ('limit = "many"', "'limit' = 'many'"),
        ('only = ["entrpy"]', "'entrpy': did you mean 'entropy'"),
        ("only = []", "no study is asked for"),
        ('data = ["a", "a"]', "'a' is given twice"),
        ("limit = ", "is not TOML"),
        ('entropy_estimators = ["mean"]', "entropy_estimators"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=expected.replace("[", r"\[")) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_only_the_built_in_job_is_limited_unasked() -> None:
    job = load_config()
    assert job.limit is not None
    assert job.limit_statements is not None
    assert load_config(None, {"limit": "none"}).limit is None
    own = load_config(None, {"data": "mine.csv"})
    assert (own.limit, own.limit_statements) == (None, None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file .*gone\.toml.*--config"):
        load_config(tmp_path / "gone.toml")


def test_what_is_run_and_where_does_not_make_another_run() -> None:
    one, other = RunConfig(only=("layers",), out="a"), RunConfig(out="b")
    assert one.identity() == other.identity()
    assert one.identity() != RunConfig(seed=1).identity()


def test_the_spelling_of_a_models_name_is_no_identity() -> None:
    one, other = RunConfig(model="./a/model"), RunConfig(model="/elsewhere/model", base="x", revision="main")
    assert one.identity() == other.identity()
    assert RunConfig(seed=1).identity() != one.identity()


def test_the_layer_study_takes_all_questions_where_its_bound_is_0() -> None:
    assert RunConfig(look_limit=0).look_limit == 0
    with pytest.raises(ConfigError, match="look_limit"):
        RunConfig(look_limit=-1)
