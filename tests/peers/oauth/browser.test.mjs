// The player of pages by itself: `node --test tests/peers/oauth/browser.test.mjs`.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import test from "node:test";
import { Browser, Jar, filled, forms } from "./browser.mjs";

const LOGIN = `<!doctype html><html><head><style>form > p { margin: 0 }</style></head><body>
<!-- <form method="post"><input name="old"></form> -->
<form method="get" action="/search"><input name="q"></form>
<form method="post" class='a > b'>
  <input type="hidden" name="csrf" value="a&quot;b&amp;c&#x2F;&#39;d">
  <input type=hidden name=step value=login />
  <input type="text" name="tenant" value="default" required>
  <input name="username" autocomplete="username"><input type="password" name="password">
  <input type="checkbox" name="stay" value="1"><input disabled name="off" value="1">
  <button type="submit">Sign in</button>
</form></body></html>`;
const CONSENT = `<form method="POST" action="?x=1&amp;y=2"><input type="hidden" name="csrf" value="z"><input type="hidden" name="step" value="consent">
<button name="decision" value="allow">Allow</button><button name="decision" value="deny">Deny</button></form>`;

test("should read the forms of a page", () => {
  const [search, login] = forms(LOGIN);
  assert.equal(forms(LOGIN).length, 2);
  assert.deepEqual([search.method, search.action], ["get", "/search"]);
  assert.equal(login.method, "post");
  assert.deepEqual(Object.fromEntries(filled(login, { username: "admin", password: "p w", csrf: "never", step: "never" })), {
    csrf: `a"b&c/'d`, step: "login", tenant: "default", username: "admin", password: "p w",
  });
});

test("should press the button that an answer names", () => {
  const [form] = forms(CONSENT);
  assert.equal(form.action, "?x=1&y=2");
  assert.deepEqual(filled(form, { decision: "deny" }), [["csrf", "z"], ["step", "consent"], ["decision", "deny"]]);
  assert.deepEqual(filled(form, {}), [["csrf", "z"], ["step", "consent"]]);
});

test("should keep cookies by path and drop the expired", () => {
  const jar = new Jar();
  const headers = new Headers();
  headers.append("set-cookie", "a=1=2; Path=/; HttpOnly; SameSite=Lax");
  headers.append("set-cookie", "b=2; Path=/oauth");
  headers.append("set-cookie", "c=3");
  jar.take("http://127.0.0.1:1/oauth/authorize?x", headers);
  assert.equal(jar.header("http://127.0.0.1:2/oauth/device"), "b=2; c=3; a=1=2");
  assert.equal(jar.header("http://127.0.0.1:1/oauthx"), "a=1=2");
  assert.equal(jar.header("http://localhost:1/oauth"), "");
  jar.take("http://127.0.0.1:1/", new Headers({ "set-cookie": "a=; Path=/; Max-Age=0" }));
  jar.take("http://127.0.0.1:1/", new Headers({ "set-cookie": "b=; Path=/oauth; Expires=Thu, 01 Jan 1970 00:00:00 GMT" }));
  assert.equal(jar.header("http://127.0.0.1:1/oauth/x"), "c=3");
});

async function served(policy, work) {
  const server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => (body += chunk)).on("end", () => {
      const sent = new URLSearchParams(body);
      const known = request.headers.cookie?.includes("session=1");
      const page = (html) => response.writeHead(200, { "content-type": "text/html", "set-cookie": "pre=1; Path=/", ...(policy && { "content-security-policy": policy }) }).end(html);
      const go = (location, cookie) => response.writeHead(303, { location, ...(cookie && { "set-cookie": cookie }) }).end();
      if (request.method === "GET") return page(known ? CONSENT : LOGIN);
      if (sent.get("step") === "login") return sent.get("password") === "right" ? go(request.url, "session=1; Path=/") : page(LOGIN);
      return go(sent.get("decision") === "allow" ? "http://client.test/back?code=1" : "http://client.test/back?error=access_denied");
    });
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  try {
    return await work(`http://127.0.0.1:${server.address().port}/authorize?q=1`);
  } finally {
    server.close();
  }
}

test("should walk through login and consent to the client", () => served("", async (url) => {
  const back = await new Browser({ username: "a", password: "right" }).visit(url, { until: "http://client.test/back", decision: "allow" });
  assert.equal(back.href, "http://client.test/back?code=1");
  assert.deepEqual(back.pages.map(({ name }) => name), ["login", "consent"]);
}));

test("should tell of a refused password instead of going round", () => served("", async (url) => {
  await assert.rejects(new Browser({ username: "a", password: "wrong" }).visit(url, { until: "http://client.test/" }), /asked twice for 'login'/);
}));

test("should stop where a browser stops", () => served("default-src 'none'; form-action 'self'", async (url) => {
  await assert.rejects(new Browser({ password: "right" }).visit(url, { until: "http://client.test/", decision: "allow" }), /keeps a browser from http:\/\/client\.test/);
}));
