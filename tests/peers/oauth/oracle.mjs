// The same wrong requests to Keiko and to `oidc-provider`: status and error code must be the same, or a difference with a reason.
// node tests/peers/oauth/oracle.mjs, with KEIKO_URL and KEIKO_PASSWORD; `--peer` shows what oidc-provider alone answers.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { Admin, BASE, DEVICE_CODE, REDIRECT, SCOPE, TOKEN_EXCHANGE, person, run } from "./judge.mjs";
import { clientOf, start } from "./provider.mjs";

const RANDOM_CODE = "S3cr3t-that-nobody-gave-out_0123456789abcdefghi";
const VERIFIER = randomBytes(32).toString("base64url");
const CHALLENGE = createHash("sha256").update(VERIFIER).digest("base64url");

// One of the two servers: where its endpoints are, its clients, and how to send it something.
class Side {
  constructor(metadata, clients) {
    Object.assign(this, { metadata, clients, browser: person() });
  }

  static async of(base, clients) {
    const answer = await fetch(`${base}/.well-known/openid-configuration`);
    return new Side(await answer.json(), clients);
  }

  basic({ client_id, client_secret }) {
    return { authorization: `Basic ${Buffer.from(`${encodeURIComponent(client_id)}:${encodeURIComponent(client_secret)}`).toString("base64")}` };
  }

  async post(endpoint, form, { as = this.clients.full, headers } = {}) {
    const body = typeof form === "string" ? form : new URLSearchParams(form);
    const type = { "content-type": "application/x-www-form-urlencoded" };
    const sent = { ...type, ...(as ? this.basic(as) : {}), ...headers };
    return seen(await fetch(this.metadata[`${endpoint}_endpoint`], { method: "POST", redirect: "manual", headers: sent, body }));
  }

  token(form, how) {
    return this.post("token", form, how);
  }

  authorizeUrl(parameters) {
    const all = {
      client_id: this.clients.full.client_id, redirect_uri: REDIRECT, response_type: "code", scope: "openid", state: "s t&a=te", nonce: "n",
      code_challenge: CHALLENGE, code_challenge_method: "S256", ...parameters,
    };
    const url = new URL(this.metadata.authorization_endpoint);
    for (const [name, value] of Object.entries(all)) if (value !== undefined) url.searchParams.append(name, value);
    return url;
  }

  // What a browser without a login gets: {status, error}; `error` is the one in a redirect back to the client.
  async authorize(parameters, query = "") {
    const answer = await person().fetch(this.authorizeUrl(parameters).href + query);
    const location = answer.headers.get("location");
    if (!location?.startsWith(REDIRECT)) return { status: answer.status, error: null, html: (answer.headers.get("content-type") ?? "").startsWith("text/html") };
    const { search, hash } = new URL(location);
    const back = new URLSearchParams(hash.slice(1) || search);
    return { status: "redirect", error: back.get("error"), state: back.get("state"), iss: back.get("iss") === this.metadata.issuer };
  }

  async code(client = this.clients.full) {
    const back = await this.browser.visit(this.authorizeUrl({ client_id: client.client_id }), { until: REDIRECT, decision: "allow" });
    return back.searchParams.get("code");
  }

  redeem(code, parameters = {}, how) {
    const form = { grant_type: "authorization_code", code, redirect_uri: REDIRECT, code_verifier: VERIFIER, ...parameters };
    return this.token(Object.fromEntries(Object.entries(form).filter(([, value]) => value !== undefined)), how);
  }
}

async function seen(response) {
  const text = await response.text();
  const json = text.startsWith("{") ? JSON.parse(text) : {};
  const challenge = response.headers.get("www-authenticate")?.split(" ")[0].toLowerCase() ?? null;
  return { status: response.status, error: typeof json.error === "string" ? json.error : challengeError(response), ...("active" in json ? { active: json.active } : {}), challenge, json };
}

function challengeError(response) {
  return /\berror="([^"]*)"/.exec(response.headers.get("www-authenticate") ?? "")?.[1] ?? null;
}

const WRONG = {
  // Which grant
  "a grant type that nobody knows": (s) => s.token({ grant_type: "password", username: "a", password: "b" }),
  "no grant type": (s) => s.token({ code: RANDOM_CODE }),
  "a grant type that the client may not use": (s) => s.token({ grant_type: "client_credentials", scope: "tasks.read" }, { as: s.clients.narrow }),
  "two grant types": (s) => s.token("grant_type=client_credentials&grant_type=client_credentials&scope=tasks.read"),
  "a token request as JSON": (s) => s.token('{"grant_type":"client_credentials"}', { headers: { "content-type": "application/json" } }),

  // The client
  "a wrong secret": (s) => s.token({ grant_type: "client_credentials" }, { as: { ...s.clients.full, client_secret: "wrong" } }),
  "a wrong secret in the form": (s) => s.token({ grant_type: "client_credentials", client_id: s.clients.full.client_id, client_secret: "wrong" }, { as: null }),
  "a confidential client without its secret": (s) => s.token({ grant_type: "client_credentials", client_id: s.clients.full.client_id }, { as: null }),
  "no client at all": (s) => s.token({ grant_type: "client_credentials" }, { as: null }),
  "a client that nobody knows": (s) => s.token({ grant_type: "client_credentials" }, { as: { client_id: "nobody", client_secret: "x" } }),
  "a secret in two places": (s) => s.token({ grant_type: "client_credentials", client_id: s.clients.full.client_id, client_secret: s.clients.full.client_secret }),
  "a client that says it is another": (s) => s.token({ grant_type: "client_credentials", client_id: s.clients.other.client_id }),
  "a header that is no Basic": (s) => s.token({ grant_type: "client_credentials" }, { as: null, headers: { authorization: "Basic !!!" } }),
  "an assertion that is no JWT": (s) => s.token({
    grant_type: "client_credentials", client_id: s.clients.full.client_id, client_assertion: "garbage",
    client_assertion_type: "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
  }, { as: null }),

  // The code
  "no code": (s) => s.redeem(undefined),
  "a wrong code": (s) => s.redeem(RANDOM_CODE),
  "a wrong verifier": async (s) => s.redeem(await s.code(), { code_verifier: randomBytes(32).toString("base64url") }),
  "a verifier that is too short": async (s) => s.redeem(await s.code(), { code_verifier: "short" }),
  "no verifier": async (s) => s.redeem(await s.code(), { code_verifier: undefined }),
  "another redirect URI": async (s) => s.redeem(await s.code(), { redirect_uri: `${REDIRECT}/other` }),
  "a code of another client": async (s) => s.redeem(await s.code(), {}, { as: s.clients.other }),
  "a code for the second time": async (s) => {
    const code = await s.code();
    assert.equal((await s.redeem(code)).status, 200);
    return s.redeem(code);
  },

  // The other grants
  "a refresh token that is garbage": (s) => s.token({ grant_type: "refresh_token", refresh_token: "garbage" }),
  "no refresh token": (s) => s.token({ grant_type: "refresh_token" }),
  "a refresh token of another client": async (s) => {
    const { json } = await s.redeem(await s.code());
    assert.ok(json.refresh_token);
    return s.token({ grant_type: "refresh_token", refresh_token: json.refresh_token }, { as: s.clients.other });
  },
  "a refresh token for the second time": async (s) => {
    const { json } = await s.redeem(await s.code());
    assert.equal((await s.token({ grant_type: "refresh_token", refresh_token: json.refresh_token })).status, 200);
    return s.token({ grant_type: "refresh_token", refresh_token: json.refresh_token });
  },
  "more scope at refresh": async (s) => {
    const { json } = await s.redeem(await s.code());
    return s.token({ grant_type: "refresh_token", refresh_token: json.refresh_token, scope: "openid email" });
  },
  "a scope that is no scope": (s) => s.token({ grant_type: "client_credentials", scope: 'tasks.read "quoted"' }),
  "a scope with a wildcard": (s) => s.token({ grant_type: "client_credentials", scope: "tasks.*" }),
  "client credentials of a public client": (s) => s.token({ grant_type: "client_credentials", client_id: s.clients.open.client_id }, { as: null }),
  "a resource that nobody knows": (s) => s.token({ grant_type: "client_credentials", scope: "tasks.read", resource: "https://elsewhere.example" }),
  "a resource that is no URI": (s) => s.token({ grant_type: "client_credentials", scope: "tasks.read", resource: "elsewhere" }),
  "a device code that nobody knows": (s) => s.token({ grant_type: DEVICE_CODE, device_code: RANDOM_CODE }),
  "no device code": (s) => s.token({ grant_type: DEVICE_CODE }),
  "a device that asks too early": async (s) => {
    const { json } = await s.post("device_authorization", { scope: "openid" });
    return s.token({ grant_type: DEVICE_CODE, device_code: json.device_code });
  },
  "a device code of another client": async (s) => {
    const { json } = await s.post("device_authorization", { scope: "openid" });
    return s.token({ grant_type: DEVICE_CODE, device_code: json.device_code }, { as: s.clients.other });
  },
  "a device of a client that nobody knows": (s) => s.post("device_authorization", { client_id: "nobody", scope: "openid" }, { as: null }),

  // Tokens
  "a revocation of garbage": (s) => s.post("revocation", { token: "garbage" }),
  "a revocation of nothing": (s) => s.post("revocation", {}),
  "a revocation by a wrong secret": (s) => s.post("revocation", { token: "garbage" }, { as: { ...s.clients.full, client_secret: "wrong" } }),
  "a revocation of a token of another client": async (s) => {
    const { json } = await s.redeem(await s.code());
    const answer = await s.post("revocation", { token: json.refresh_token }, { as: s.clients.other });
    assert.equal((await s.token({ grant_type: "refresh_token", refresh_token: json.refresh_token })).status, 200, "it still works for its own client");
    return answer;
  },
  "an introspection of garbage": (s) => s.post("introspection", { token: "garbage" }),
  "an introspection of nothing": (s) => s.post("introspection", {}),
  "an introspection by a wrong secret": (s) => s.post("introspection", { token: "garbage" }, { as: { ...s.clients.full, client_secret: "wrong" } }),
  "an introspection by nobody": (s) => s.post("introspection", { token: "garbage" }, { as: null }),
  "an introspection by a public client": (s) => s.post("introspection", { token: "garbage", client_id: s.clients.open.client_id }, { as: null }),
  "userinfo without a token": async (s) => seen(await fetch(s.metadata.userinfo_endpoint)),
  "userinfo for garbage": async (s) => seen(await fetch(s.metadata.userinfo_endpoint, { headers: { authorization: "Bearer garbage" } })),
  "userinfo without the scope openid": async (s) => {
    const { json } = await s.token({ grant_type: "client_credentials", scope: "tasks.read" });
    return seen(await fetch(s.metadata.userinfo_endpoint, { headers: { authorization: `Bearer ${json.access_token}` } }));
  },

  // At the pages
  "a response type that is not served": (s) => s.authorize({ response_type: "token" }),
  "no response type": (s) => s.authorize({ response_type: undefined }),
  "no code challenge": (s) => s.authorize({ code_challenge: undefined, code_challenge_method: undefined }),
  "a plain code challenge": (s) => s.authorize({ code_challenge_method: "plain" }),
  "a code challenge of no length": (s) => s.authorize({ code_challenge: "short" }),
  "prompt=none without a login": (s) => s.authorize({ prompt: "none" }),
  "prompt=none and login": (s) => s.authorize({ prompt: "none login" }),
  "a prompt that nobody knows": (s) => s.authorize({ prompt: "dance" }),
  "a max_age that is no number": (s) => s.authorize({ max_age: "old" }),
  "a scope with a wildcard at the pages": (s) => s.authorize({ scope: "openid tasks.*", prompt: "none" }),
  "a scope that is no scope at the pages": (s) => s.authorize({ scope: 'openid "quoted"', prompt: "none" }),
  "a resource at the pages that nobody knows": (s) => s.authorize({ resource: "https://elsewhere.example" }),
  "a request object": (s) => s.authorize({ request: "e30.e30." }),
  "a response mode that nobody knows": (s) => s.authorize({ response_mode: "carrier_pigeon" }),
  "a state twice": (s) => s.authorize({}, "&state=again"),
  "a client at the pages that nobody knows": (s) => s.authorize({ client_id: "nobody" }),
  "no client at the pages": (s) => s.authorize({ client_id: undefined }),
  "a redirect URI that is not registered": (s) => s.authorize({ redirect_uri: "http://127.0.0.1:9/elsewhere" }),
  "a redirect URI that only begins like it": (s) => s.authorize({ redirect_uri: `${REDIRECT}.evil.example/` }),
  "a client that may not use codes": (s) => s.authorize({ client_id: s.clients.machine.client_id }),

  // The rest
  "a logout with a hint that is garbage": async (s) => htmlOnly(await person().fetch(`${s.metadata.end_session_endpoint}?id_token_hint=garbage`)),
  "a logout to an address that is not registered": async (s) => htmlOnly(await person().fetch(
    `${s.metadata.end_session_endpoint}?client_id=${s.clients.full.client_id}&post_logout_redirect_uri=${encodeURIComponent("http://evil.example/")}`)),
  "a registration without redirect URIs": (s) => register(s, { client_name: "x", grant_types: ["authorization_code"], response_types: ["code"] }),
  "a registration with a fragment": (s) => register(s, { redirect_uris: [`${REDIRECT}#part`] }),
  "a registration with a method that nobody knows": (s) => register(s, { redirect_uris: [REDIRECT], token_endpoint_auth_method: "handshake" }),
  "a registration that is no JSON": (s) => register(s, "{"),
};

async function htmlOnly(response) {
  return { status: response.status, error: null, challenge: null };
}

async function register(side, metadata) {
  const body = typeof metadata === "string" ? metadata : JSON.stringify(metadata);
  return seen(await fetch(side.metadata.registration_endpoint, { method: "POST", headers: { "content-type": "application/json" }, body }));
}

// Where Keiko may answer otherwise, with the reason. An answer that is neither this nor the peer's fails.
const DIFFERENT = {
  "a grant type that the client may not use": { keiko: ["400 unauthorized_client"], why: "RFC 6749 5.2 has a code for just this" },
  "client credentials of a public client": { keiko: ["400 unauthorized_client"], why: "RFC 6749 5.2 has a code for just this" },
  "a token request as JSON": { keiko: ["415 invalid_request"], why: "415 is what HTTP says to a wrong content type" },
  "no client at all": { keiko: ["401 invalid_client"], why: "RFC 6749 5.2: invalid_client is also for no authentication" },
  "an introspection by nobody": { keiko: ["401 invalid_client"], why: "RFC 6749 5.2: invalid_client is also for no authentication" },
  "an introspection by a public client": { keiko: ["401 invalid_client"], why: "RFC 7662 2.1: the endpoint must be authorized, and a public client has nothing to show" },
  "a header that is no Basic": { keiko: ["401 invalid_client"], why: "RFC 6749 5.2: a failed authentication by header is a 401" },
  "an assertion that is no JWT": { keiko: ["401 invalid_client"], why: "RFC 7523 3.2: an assertion that is not valid is invalid_client" },
  "a client that says it is another": { keiko: ["401 invalid_client"], why: "the header authenticates another client than the form names" },
  "no verifier": { keiko: ["400 invalid_request"], why: "OAuth 2.1 4.1.3: a required parameter is missing" },
  "a verifier that is too short": { keiko: ["400 invalid_grant"], why: "RFC 7636 4.6: a verifier that does not match is invalid_grant" },
  "a revocation of a token of another client": { keiko: ["200 null"], why: "RFC 7009 2.2: to this client it is an invalid token, and the token goes on working" },
  "a refresh token for the second time": { keiko: ["200 null"], why: "an honest repetition within session.refresh_grace gets the same answer" },
  "a scope with a wildcard": { keiko: ["400 invalid_scope"], why: "Keiko's scopes are permission names, and a wildcard would widen with each new one" },
  "userinfo without a token": { keiko: ["401 null"], why: "RFC 6750 3.1: a request without authentication gets no error code" },
  "userinfo without the scope openid": { keiko: ["403 insufficient_scope"], why: "RFC 6750 3.1; the peer stops earlier, at the audience" },
  "a scope with a wildcard at the pages": { keiko: ["redirect invalid_scope"], why: "Keiko's scopes are permission names, and a wildcard would widen with each new one" },
  "a response mode that nobody knows": { keiko: ["redirect invalid_request"], why: "the code of the peer is not in a registry" },
  "a logout with a hint that is garbage": { keiko: ["200 null"], why: "RP-initiated logout 4: no redirect; a page that asks the person is as good" },
  "a logout to an address that is not registered": { keiko: ["200 null"], why: "RP-initiated logout 4: no redirect; a page that asks the person is as good" },
  "a registration without redirect URIs": { keiko: ["400 invalid_client_metadata"], why: "RFC 7591 3.2.2: a field is missing rather than wrong" },
  "a registration that is no JSON": { keiko: ["400 invalid_client_metadata"], why: "RFC 7591 3.2.2 has no invalid_request" },
};

// RFC 8414 section 2, OpenID Connect Discovery section 3: what is REQUIRED or RECOMMENDED, and what must follow from what else is said.
const MEMBERS = {
  REQUIRED: [
    "issuer", "authorization_endpoint", "token_endpoint", "response_types_supported", "jwks_uri", "subject_types_supported",
    "id_token_signing_alg_values_supported",
  ],
  RECOMMENDED: ["scopes_supported", "userinfo_endpoint", "registration_endpoint", "claims_supported"],
  USED: [
    "grant_types_supported", "token_endpoint_auth_methods_supported", "token_endpoint_auth_signing_alg_values_supported",
    "code_challenge_methods_supported", "authorization_response_iss_parameter_supported", "revocation_endpoint", "introspection_endpoint",
    "device_authorization_endpoint", "end_session_endpoint",
  ],
};

function shown(answer) {
  return [answer.status, answer.error, ...("active" in answer ? [`active=${answer.active}`] : [])].map(String).join(" ");
}

function judged(name, peer, keiko) {
  if (shown(peer) === shown(keiko)) return;
  const known = DIFFERENT[name];
  assert.ok(known, `Keiko answered '${shown(keiko)}', oidc-provider '${shown(peer)}'`);
  assert.ok(known.keiko.includes(shown(keiko)), `Keiko answered '${shown(keiko)}', oidc-provider '${shown(peer)}', and known is '${known.keiko.join("' or '")}': ${known.why}`);
}

// What holds whatever the peer does.
function sound(name, keiko) {
  if (keiko.status === "redirect") {
    assert.equal(keiko.iss, true, "every redirect names the issuer");
    if (name !== "a state twice") assert.equal(keiko.state, "s t&a=te", "the state comes back as it was");
  } else if (keiko.status === 401) {
    assert.ok(keiko.challenge, "a 401 has WWW-Authenticate");
  } else {
    assert.ok(keiko.status < 500, `status ${keiko.status}`);
    assert.notEqual(keiko.html, false, "what cannot be redirected is a page for the person");
  }
}

const CLIENTS = ["full", "other", "narrow", "machine", "open"];
const GRANTS = { narrow: ["authorization_code", "refresh_token"], machine: ["client_credentials"], open: ["authorization_code", "refresh_token"] };
const METHODS = { open: "none" };

async function peerSide() {
  const clients = Object.fromEntries(CLIENTS.map((name) => [
    name, { client_id: name, ...(METHODS[name] ? {} : { client_secret: `${name}-secret-0123456789` }), method: METHODS[name] ?? "client_secret_basic", grants: GRANTS[name] },
  ]));
  const peer = await start(Object.values(clients).map(clientOf));
  return [await Side.of(peer.issuer, clients), peer.close];
}

async function keikoSide() {
  const admin = await Admin.login();
  const clients = {};
  for (const name of CLIENTS) {
    const grants = GRANTS[name] ? { grant_types: GRANTS[name] } : {};
    clients[name] = await admin.client(METHODS[name] ?? "client_secret_basic", { ...grants, ...(name === "machine" ? { redirect_uris: [] } : {}) });
  }
  return Side.of(BASE, clients);
}

async function main() {
  const [peer, close] = await peerSide();
  if (process.argv.includes("--peer")) {
    for (const [name, ask] of Object.entries(WRONG)) console.log(`${name}: ${shown(await ask(peer))}`);
    return close();
  }
  const keiko = await keikoSide();
  const wrong = Object.entries(WRONG).map(([name, ask]) => [`oracle: ${name}`, async () => {
    const [theirs, ours] = [await ask(peer), await ask(keiko)];
    judged(name, theirs, ours);
    sound(name, ours);
  }]);
  const members = Object.entries(MEMBERS).map(([level, names]) => [`oracle: metadata has what is ${level}`, async () => {
    const missing = names.filter((name) => name in peer.metadata && !(name in keiko.metadata));
    assert.deepEqual(missing, []);
    for (const name of names) assert.equal(typeof keiko.metadata[name], typeof peer.metadata[name], name);
  }]);
  const values = ["oracle: metadata says what is served", async () => {
    const has = (name, ...wanted) => assert.deepEqual(wanted.filter((value) => !keiko.metadata[name]?.includes(value)), [], name);
    has("scopes_supported", ...SCOPE.split(" ").slice(0, 4));
    has("grant_types_supported", "authorization_code", "refresh_token", "client_credentials", TOKEN_EXCHANGE, DEVICE_CODE);
    has("token_endpoint_auth_methods_supported", "none", "client_secret_basic", "client_secret_post", "private_key_jwt");
    has("token_endpoint_auth_signing_alg_values_supported", "ES256");
    has("id_token_signing_alg_values_supported", "ES256");
    assert.deepEqual(keiko.metadata.response_types_supported, ["code"]);
    assert.deepEqual(keiko.metadata.code_challenge_methods_supported, ["S256"]);
    for (const [name, value] of Object.entries(keiko.metadata)) if (/_endpoint$|_uri$/.test(name)) assert.ok(value.startsWith(`${keiko.metadata.issuer}/`), name);
  }];
  try {
    await run([...wrong, ...members, values]);
  } finally {
    close();
  }
}

await main();
