// What all judges share: the server under test and its set-up by REST, and the run of a list of scenarios.
// KEIKO_URL is the server, KEIKO_PASSWORD the password of its first user.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import * as oauth from "oauth4webapi";
import { Browser } from "./browser.mjs";

export const BASE = process.env.KEIKO_URL?.replace(/\/$/, "") ?? "";
export const PASSWORD = process.env.KEIKO_PASSWORD ?? "";
export const REDIRECT = "http://127.0.0.1:9/callback";
export const AFTER_LOGOUT = "http://127.0.0.1:9/bye";
export const TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange";
export const DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code";
export const ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token";
export const SCOPE = "openid profile email offline_access discovery.read tasks.read tasks.create";
export const INSECURE = { [oauth.allowInsecureRequests]: true };

export function unique(prefix) {
  return `${prefix}-${randomUUID().slice(0, 8)}`;
}

// Keiko's REST, as its admin.
export class Admin {
  static async login() {
    const admin = new Admin();
    const { access_token } = await admin.post("/auth/login", { username: "admin", password: PASSWORD });
    admin.token = access_token;
    admin.service = unique("service");
    await admin.post("/users", { username: admin.service, kind: "service", roles: ["developer"] });
    return admin;
  }

  async post(path, body) {
    const headers = { "content-type": "application/json", ...(this.token ? { authorization: `Bearer ${this.token}` } : {}) };
    const response = await fetch(`${BASE}/api/v1${path}`, { method: "POST", headers, body: JSON.stringify(body) });
    const text = await response.text();
    assert.ok(response.ok, `POST /api/v1${path} answered ${response.status}: ${text.slice(0, 500)}`);
    return JSON.parse(text).data.attributes;
  }

  // A client of its own for each scenario, so that none depends on what another consented to.
  async client(method = "client_secret_basic", fields = {}) {
    const body = {
      name: unique("judge"),
      redirect_uris: [REDIRECT],
      post_logout_redirect_uris: [AFTER_LOGOUT],
      grant_types: ["authorization_code", "refresh_token", "client_credentials", TOKEN_EXCHANGE, DEVICE_CODE],
      token_endpoint_auth_method: method,
      scopes: SCOPE.split(" "),
      subject: this.service,
      ...fields,
    };
    if (method === "none") {
      body.grant_types = ["authorization_code", "refresh_token", DEVICE_CODE];
      delete body.subject;
    }
    const made = await this.post("/clients", body);
    assert.equal(typeof made.client_id, "string", "a client has a client_id");
    assert.equal(typeof made.client_secret, method.startsWith("client_secret") ? "string" : "undefined");
    return { client_id: made.client_id, client_secret: made.client_secret, method };
  }

  // A client that signs its assertions with a key made here.
  async keyed() {
    const { privateKey, publicKey } = await oauth.generateKeyPair("ES256", { extractable: true });
    const jwk = { ...(await crypto.subtle.exportKey("jwk", publicKey)), kid: unique("key"), alg: "ES256", use: "sig" };
    delete jwk.key_ops;
    delete jwk.ext;
    return { ...(await this.client("private_key_jwt", { jwks: { keys: [jwk] } })), key: { key: privateKey, kid: jwk.kid } };
  }
}

export function person() {
  return new Browser({ tenant: "default", username: "admin", login: "admin", password: PASSWORD });
}

export function decoded(jwt) {
  const [header, claims] = jwt.split(".").map((part, i) => i < 2 && JSON.parse(Buffer.from(part, "base64url")));
  return { header, claims };
}

// The claims of an access token, after oauth4webapi has judged it as a resource server does (RFC 9068).
export async function accepted(token, audience) {
  const issuer = new URL(BASE);
  const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: "oauth2", ...INSECURE }));
  const request = new Request(audience, { headers: { authorization: `Bearer ${token}` } });
  return oauth.validateJwtAccessToken(as, request, audience, { ...INSECURE, signingAlgorithms: ["ES256", "Ed25519", "EdDSA"] });
}

// Holds when `promise` fails with one of the OAuth error codes.
export async function refused(promise, ...codes) {
  let error;
  try {
    await promise;
  } catch (caught) {
    error = caught;
  }
  assert.ok(error, `was not refused with ${codes.join(" or ")}`);
  const body = error.response && !error.response.bodyUsed ? await error.response.json().catch(() => ({})) : {};
  const challenge = error.cause?.[0]?.parameters?.error;
  const code = error.error ?? challenge ?? body.error ?? error.message;
  assert.ok(codes.includes(code), `refused with '${code}' (${error.error_description ?? body.error_description ?? error.code}), not ${codes.join(" or ")}`);
  return error;
}

// Everything that the token endpoint answered to any library, for the headers that no library looks at.
const answers = [];
const plain = globalThis.fetch;
globalThis.fetch = async (url, init) => {
  const response = await plain(url, init);
  if (init?.method === "POST" && new URL(url).pathname.endsWith("/token")) {
    const authorization = new Headers(init.headers).get("authorization");
    answers.push({ status: response.status, headers: response.headers, basic: /^basic /i.test(authorization ?? "") });
  }
  return response;
};

export async function should_answer_tokens_that_nobody_keeps() {
  assert.ok(answers.length > 10);
  for (const { status, headers, basic } of answers) {
    assert.match(headers.get("content-type") ?? "", /^application\/json\b/, `content-type of a ${status}`);
    assert.match(headers.get("cache-control") ?? "", /\bno-store\b/, `cache-control of a ${status}`);
    if (status === 401 && basic) assert.match(headers.get("www-authenticate") ?? "", /^Basic\b/i, "a 401 to Basic names Basic");
  }
}

// Runs named functions in order; one line each, then the count. A failure ends none of the others.
export async function run(scenarios) {
  let [passed, failed] = [0, 0];
  for (const [name, scenario] of scenarios) {
    try {
      await scenario();
      passed += 1;
      console.log(`ok ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`not ok ${name}: ${told(error)}`);
    }
  }
  console.log(`judges: ${passed} passed, ${failed} failed`);
  process.exitCode = failed ? 1 : 0;
}

function told(error) {
  const because = error.cause instanceof Error ? ` (${error.cause.message})` : "";
  const oauthError = error.error ? ` [${error.error}: ${error.error_description ?? ""}]` : "";
  const where = error.stack?.split("\n").find((line) => line.includes("scenarios.mjs"))?.match(/scenarios\.mjs:\d+/)?.[0] ?? "";
  return `${error.message}${oauthError}${because} ${where}`.replace(/\s+/g, " ").trim();
}
