// The parts that need no browser.
import { expect, test } from "vitest";
import { age, column, may } from "./format";
import { challenge, elsewhere, isSameMachine } from "./oauth";
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

test("permissions hold others", () => {
  expect(["tasks.read", "tasks.*", "*", "tasks.read:own"].map((held) => may([held], "tasks.read"))).toEqual([true, true, true, true]);
  expect(["tasks.create", "tasks", "agents.*", "tasks.rea"].some((held) => may([held], "tasks.read"))).toBe(false);
});

test("every status has a column", () => {
  expect(["pending", "claimed", "completed", "failed", "dead", "cancelled"].map(column)).toEqual([
    "pending", "working", "done", "failed", "failed", "failed",
  ]);
});

test("the proof of RFC 7636, appendix B", async () => {
  expect(await challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")).toBe("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
});

test("a login goes on only where the server can answer it", () => {
  const at = (issuer: string, page: string) => elsewhere(issuer, new URL(page));
  expect(at("https://keiko.example", "https://keiko.example/#/tasks/x")).toBeNull();
  expect(at("http://127.0.0.1:8080", "http://127.0.0.1:9000/")).toBeNull();
  expect(at("https://keiko.example", "http://10.0.0.1:8080/#/tasks/x")).toBe("https://keiko.example/#/tasks/x");
  expect(at("http://127.0.0.1:8080", "http://localhost:8080/")).toBe("http://127.0.0.1:8080/");
  expect(isSameMachine("http://127.0.0.1:8080/", new URL("http://localhost:8080/"))).toBe(true);
  expect(isSameMachine("http://127.0.0.1:8080/", new URL("http://localhost:9000/"))).toBe(false);
  expect(isSameMachine("https://keiko.example/", new URL("http://localhost:443/"))).toBe(false);
});
