// The parts that need no browser.
import { expect, test } from "vitest";
import { age, column } from "./format";
import { SseParser } from "./sse";

test("events come out whole, whatever the chunks were", () => {
  const parser = new SseParser();
  expect(parser.push("id: 1\nda")).toEqual([]);
  expect(parser.push('ta: {"a":\r\ndata: 1}\r\n\r\n: comment\n\nid:2\ndata:x\n\n')).toEqual([
    { id: "1", data: '{"a":\n1}' },
    { id: "2", data: "x" },
  ]);
});

test("ages have one unit", () => {
  const now = Date.parse("2026-01-02T00:00:00Z");
  expect(age("2026-01-01T23:59:55Z", now)).toBe("5 s");
  expect(age("2026-01-01T23:00:00Z", now)).toBe("1 h");
  expect(age("2026-01-02T00:00:09Z", now)).toBe("0 s");
});

test("every status has a column", () => {
  expect(["pending", "claimed", "completed", "failed", "dead", "cancelled"].map(column)).toEqual([
    "pending", "working", "done", "failed", "failed", "failed",
  ]);
});
