// Reads server-sent events from a response body: EventSource cannot send an API key, fetch can.

/** Yields {event, data} for each event of a stream of bytes. */
export async function* readEvents(body) {
  let event = "message";
  let data = [];
  for await (const line of readLines(body)) {
    if (line === "") {
      if (data.length) yield { event, data: data.join("\n") };
      event = "message";
      data = [];
    } else if (!line.startsWith(":")) {
      const [, field, value] = line.match(/^([^:]*):? ?(.*)$/s);
      if (field === "event") event = value;
      if (field === "data") data.push(value);
    }
  }
}

/** Yields the complete lines of a stream, whichever of the three line ends it uses. */
async function* readLines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      // A \r at the very end may be the first half of \r\n: it waits for the next chunk.
      const lines = rest.split(/\r\n|\n|\r(?=[^])/);
      rest = lines.pop();
      yield* lines;
    }
  } finally {
    await reader.cancel();
  }
}
