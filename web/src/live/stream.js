// Server-sent events of a response that is still coming. EventSource cannot send a body, so they are read by hand.

/** @param {ReadableStream<Uint8Array>} stream @returns {AsyncGenerator<any>} */
export async function* readEvents(stream) {
  const reader = stream.pipeThrough(/** @type {any} */ (new TextDecoderStream())).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const whole = rest.split("\n\n");
      rest = whole.pop() ?? "";
      for (const event of whole) {
        const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
        // After the end mark the server closes: leaving earlier would look like a broken connection.
        if (data !== "[DONE]") yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
