// Server-sent events from a stream of text: whole events come out, whatever the chunks were.
export interface Sse {
  id: string;
  data: string;
}

export class SseParser {
  #rest = "";
  #id = "";
  #data: string[] = [];

  push(text: string): Sse[] {
    this.#rest += text;
    const lines = this.#rest.split("\n");
    this.#rest = lines.pop() ?? "";
    const found: Sse[] = [];
    for (const raw of lines) {
      const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
      if (line === "") {
        if (this.#data.length > 0) found.push({ id: this.#id, data: this.#data.join("\n") });
        this.#data = [];
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) continue;
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "id") this.#id = value;
      else if (field === "data") this.#data.push(value);
    }
    return found;
  }
}
