// What every OAuth library must be able to do with Keiko. A library comes as an adapter:
//   Lib.connect(client) discovers the server;
//   fresh(), authorizeUrl(parameters), code(url, {state, nonce, verifier}, parameters), refresh(token), clientCredentials(parameters),
//   grant(type, parameters), device(scope, play), introspect(token), revoke(token, hint), userinfo(token, sub), metadata.
// Grants answer {tokens, id}: the response, and the ID token's claims after the library has checked them and the signature.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import {
  ACCESS_TOKEN, BASE, REDIRECT, SCOPE, TOKEN_EXCHANGE, accepted, decoded, person, refused, should_answer_tokens_that_nobody_keeps, unique,
} from "./judge.mjs";

export function scenarios(Lib, admin) {
  const browser = person();
  const connected = async (method, fields) => Lib.connect(await admin.client(method, fields));

  // A code by the pages: {url, checks}, where `url` is the redirect with the code.
  async function authorized(lib, parameters = {}, { who = browser, decision = "allow" } = {}) {
    const { state, nonce, verifier, challenge } = await lib.fresh();
    const url = lib.authorizeUrl({
      redirect_uri: REDIRECT, scope: SCOPE, state, nonce, code_challenge: challenge, code_challenge_method: "S256", ...parameters,
    });
    return { url: await who.visit(url, { until: REDIRECT, decision }), checks: { state, nonce, verifier } };
  }

  async function loggedIn(lib, parameters, how) {
    const { url, checks } = await authorized(lib, parameters, how);
    return lib.code(url, checks);
  }

  const exchanged = (lib, subject_token, parameters) => lib.grant(TOKEN_EXCHANGE, { subject_token, subject_token_type: ACCESS_TOKEN, ...parameters });
  const scopesOf = (text) => (text ?? "").split(" ").filter(Boolean);

  const all = {
    async should_be_discovered() {
      const { metadata } = await connected();
      assert.equal(metadata.issuer, BASE);
      assert.ok(metadata.code_challenge_methods_supported.includes("S256"));
      assert.equal(metadata.authorization_response_iss_parameter_supported, true);
    },

    async should_be_discovered_as_plain_oauth() {
      const client = await admin.client();
      const [oidc, oauth2] = [await Lib.connect(client), await Lib.connect(client, "oauth2")];
      assert.deepEqual({ ...oauth2.metadata }, { ...oidc.metadata });
    },

    async should_log_a_person_in_by_code() {
      const lib = await connected();
      const who = person();
      const { url, checks } = await authorized(lib, { max_age: "600" }, { who });
      assert.deepEqual(url.pages.map(({ name }) => name), ["login", "consent"]);
      assert.equal(url.searchParams.get("iss"), BASE);
      const { tokens, id } = await lib.code(url, { ...checks, maxAge: 600 });
      assert.equal(tokens.token_type, "bearer"); // the library's spelling
      assert.ok(tokens.expires_in > 0 && tokens.expires_in <= 900, `expires_in ${tokens.expires_in}`);
      assert.ok(tokens.refresh_token);
      assert.deepEqual(scopesOf(tokens.scope).sort(), scopesOf(SCOPE).sort());
      assert.equal(id.nonce, checks.nonce);
      const half = createHash("sha256").update(tokens.access_token).digest().subarray(0, 16).toString("base64url");
      assert.equal(id.at_hash, half);
      const claims = await accepted(tokens.access_token, BASE);
      assert.equal(claims.sub, id.sub);
      assert.equal(claims.client_id, lib.client.client_id);
      assert.equal(claims.exp - claims.iat, 900);
    },

    async should_log_a_person_in_for_a_public_client() {
      const lib = await connected("none");
      const { tokens, id } = await loggedIn(lib);
      assert.equal((await accepted(tokens.access_token, BASE)).sub, id.sub);
      assert.ok((await lib.refresh(tokens.refresh_token)).tokens.access_token);
    },

    async should_log_a_person_in_for_a_client_with_a_key() {
      const lib = await Lib.connect(await admin.keyed());
      assert.ok((await loggedIn(lib)).id.sub);
    },

    async should_ask_for_consent_once() {
      const lib = await connected();
      await loggedIn(lib);
      const { url, checks } = await authorized(lib, { prompt: "none" });
      assert.deepEqual(url.pages, []);
      assert.ok((await lib.code(url, checks)).id.sub);
    },

    async should_tell_the_client_that_nobody_is_logged_in() {
      const lib = await connected();
      await refused(loggedIn(lib, { prompt: "none" }, { who: person() }), "login_required");
    },

    async should_tell_the_client_that_consent_is_missing() {
      const lib = await connected();
      await refused(loggedIn(lib, { prompt: "none" }), "consent_required", "interaction_required");
    },

    async should_tell_the_client_that_a_person_denied() {
      const lib = await connected();
      await refused(loggedIn(lib, {}, { decision: "deny" }), "access_denied");
    },

    async should_take_a_code_once() {
      const lib = await connected();
      const { url, checks } = await authorized(lib);
      const { tokens } = await lib.code(url, checks);
      await refused(lib.code(url, checks), "invalid_grant");
      await refused(lib.refresh(tokens.refresh_token), "invalid_grant");
    },

    async should_take_a_code_only_with_its_verifier() {
      const lib = await connected();
      const { url, checks } = await authorized(lib);
      await refused(lib.code(url, { ...checks, verifier: (await lib.fresh()).verifier }), "invalid_grant");
    },

    async should_rotate_refresh_tokens() {
      const lib = await connected();
      const first = await loggedIn(lib);
      const second = await lib.refresh(first.tokens.refresh_token);
      assert.notEqual(second.tokens.refresh_token, first.tokens.refresh_token);
      assert.notEqual(second.tokens.access_token, first.tokens.access_token);
      if (second.id) assert.equal(second.id.sub, first.id.sub);
      const third = await lib.refresh(second.tokens.refresh_token);
      assert.equal((await accepted(third.tokens.access_token, BASE)).sub, first.id.sub);
    },

    async should_end_everything_when_a_refresh_token_comes_twice() {
      const lib = await connected();
      const { tokens } = await loggedIn(lib);
      const next = await lib.refresh(tokens.refresh_token);
      const last = await lib.refresh(next.tokens.refresh_token);
      await refused(lib.refresh(tokens.refresh_token), "invalid_grant");
      await refused(lib.refresh(last.tokens.refresh_token), "invalid_grant");
    },

    async should_answer_the_same_to_a_client_that_asks_again_at_once() {
      const lib = await connected();
      const { tokens } = await loggedIn(lib);
      const next = await lib.refresh(tokens.refresh_token);
      const again = await lib.refresh(tokens.refresh_token);
      assert.equal(again.tokens.refresh_token, next.tokens.refresh_token);
      assert.ok((await lib.refresh(next.tokens.refresh_token)).tokens.access_token);
    },

    async should_narrow_at_refresh() {
      const lib = await connected();
      const { tokens } = await loggedIn(lib);
      const narrow = await lib.refresh(tokens.refresh_token, { scope: "openid tasks.read" });
      assert.deepEqual(scopesOf((await accepted(narrow.tokens.access_token, BASE)).scope).sort(), ["openid", "tasks.read"]);
    },

    ...Object.fromEntries(["client_secret_basic", "client_secret_post", "private_key_jwt"].map((method) => [
      `should_give_client_credentials_by_${method}`,
      async () => {
        const lib = await Lib.connect(method === "private_key_jwt" ? await admin.keyed() : await admin.client(method));
        const { tokens } = await lib.clientCredentials({ scope: "tasks.read" });
        const claims = await accepted(tokens.access_token, BASE);
        assert.equal(claims.client_id, lib.client.client_id);
        assert.equal(claims.scope, "tasks.read");
        assert.equal(tokens.refresh_token, undefined);
        assert.equal(tokens.id_token, undefined);
      },
    ])),

    async should_refuse_a_client_with_a_wrong_secret() {
      for (const method of ["client_secret_basic", "client_secret_post"]) {
        const client = await admin.client(method);
        const lib = await Lib.connect({ ...client, client_secret: `${client.client_secret}x` });
        assert.equal((await refused(lib.clientCredentials({ scope: "tasks.read" }), "invalid_client")).status, 401);
      }
    },

    async should_refuse_a_client_with_another_key() {
      const [mine, theirs] = [await admin.keyed(), await admin.keyed()];
      const lib = await Lib.connect({ ...mine, key: { ...theirs.key, kid: mine.key.kid } });
      await refused(lib.clientCredentials({ scope: "tasks.read" }), "invalid_client");
    },

    async should_exchange_a_token_for_a_narrower_one() {
      const lib = await connected();
      const login = await loggedIn(lib);
      const { tokens } = await exchanged(lib, login.tokens.access_token, { scope: "tasks.read" });
      assert.equal(tokens.issued_token_type, ACCESS_TOKEN);
      const claims = await accepted(tokens.access_token, BASE);
      assert.equal(claims.sub, login.id.sub);
      assert.equal(claims.scope, "tasks.read");
      assert.equal(typeof claims.act?.sub, "string");
      assert.notEqual(claims.act.sub, claims.sub);
      assert.ok(claims.exp - claims.iat <= 900);
    },

    async should_not_widen_by_exchange() {
      const lib = await connected();
      const login = await loggedIn(lib, { scope: "openid tasks.read" });
      const wider = exchanged(lib, login.tokens.access_token, { scope: "tasks.read tasks.create" });
      const given = await wider.then(({ tokens }) => scopesOf(decoded(tokens.access_token).claims.scope), () => null);
      if (given === null) await refused(wider, "invalid_scope");
      else assert.deepEqual(given, ["tasks.read"]);
      await refused(exchanged(lib, "not a token", {}), "invalid_request", "invalid_grant");
    },

    async should_introspect() {
      const lib = await connected();
      const { tokens, id } = await loggedIn(lib);
      const told = await lib.introspect(tokens.access_token);
      assert.equal(told.active, true);
      assert.deepEqual([told.sub, told.client_id, told.iss], [id.sub, lib.client.client_id, BASE]);
      assert.ok(scopesOf(told.scope).includes("tasks.read"));
      assert.equal(told.exp, decoded(tokens.access_token).claims.exp);
      assert.deepEqual(await lib.introspect("garbage"), { active: false });
    },

    async should_revoke() {
      const lib = await connected();
      const { tokens } = await loggedIn(lib);
      await lib.revoke(tokens.access_token, "access_token");
      assert.deepEqual(await lib.introspect(tokens.access_token), { active: false });
      await lib.revoke(tokens.refresh_token, "access_token"); // a wrong hint is only a hint
      await refused(lib.refresh(tokens.refresh_token), "invalid_grant");
      await lib.revoke("garbage");
    },

    async should_log_a_device_in() {
      const lib = await connected();
      const who = person();
      const { tokens, id } = await lib.device(SCOPE, async ({ user_code, verification_uri, verification_uri_complete, expires_in }) => {
        assert.match(user_code, /^[A-Z0-9]{4}-[A-Z0-9]{4}$/);
        assert.ok(verification_uri.startsWith(BASE) && expires_in > 0);
        assert.equal(new URL(verification_uri_complete).searchParams.get("user_code"), user_code);
        const end = await who.visit(verification_uri, { user_code, decision: "allow" });
        assert.ok(end.pages.some(({ decision }) => decision === "allow"), `no consent among ${end.pages.map(({ name }) => name)}`);
      });
      assert.equal((await accepted(tokens.access_token, BASE)).sub, id.sub);
      assert.ok((await lib.refresh(tokens.refresh_token)).tokens.access_token);
    },

    async should_tell_a_device_that_a_person_denied() {
      const lib = await connected("none");
      const play = ({ verification_uri_complete }) => browser.visit(verification_uri_complete, { decision: "deny" });
      await refused(lib.device("openid tasks.read", play), "access_denied");
    },

    async should_bind_a_token_to_a_resource() {
      const lib = await connected();
      const resource = `${BASE}/mcp`;
      const { tokens } = await loggedIn(lib, { resource });
      const claims = await accepted(tokens.access_token, resource);
      assert.deepEqual([claims.aud].flat(), [resource]);
      const machine = await lib.clientCredentials({ scope: "tasks.read", resource });
      assert.deepEqual([decoded(machine.tokens.access_token).claims.aud].flat(), [resource]);
      const headers = { authorization: `Bearer ${tokens.access_token}`, "content-type": "application/json", accept: "application/json, text/event-stream" };
      const params = { protocolVersion: "2025-06-18", capabilities: {}, clientInfo: { name: "judge", version: "1" } };
      const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "initialize", params });
      assert.equal((await fetch(resource, { method: "POST", headers, body })).status, 200);
      assert.equal((await fetch(`${BASE}/api/v1/tasks`, { headers })).status, 401);
    },

    async should_refuse_an_unknown_resource() {
      const lib = await connected();
      const resource = "https://elsewhere.example/api";
      await refused(lib.clientCredentials({ scope: "tasks.read", resource }), "invalid_target");
      await refused(loggedIn(lib, { resource }), "invalid_target");
    },

    async should_tell_who_a_person_is() {
      const lib = await connected();
      const { tokens, id } = await loggedIn(lib);
      const told = await lib.userinfo(tokens.access_token, id.sub);
      assert.equal(told.sub, id.sub);
      assert.equal(told.preferred_username ?? told.name, "admin");
      const refusal = await refused(lib.userinfo(`${tokens.access_token}x`, id.sub), "invalid_token", "server responded with a challenge in the WWW-Authenticate HTTP Header");
      assert.equal(refusal.status, 401);
      assert.deepEqual([refusal.cause[0].scheme, refusal.cause[0].parameters.error], ["bearer", "invalid_token"]);
    },

    async should_register_a_client() {
      const lib = await Lib.register({
        client_name: unique("registered"), redirect_uris: [REDIRECT], grant_types: ["authorization_code", "refresh_token"],
        response_types: ["code"], token_endpoint_auth_method: "none", scope: SCOPE,
      });
      assert.ok((await loggedIn(lib)).id.sub);
    },
  };
  const named = Object.entries(all).map(([name, scenario]) => [`${Lib.title}: ${name}`, scenario]);
  return [...named, ...Lib.more(admin, { browser, connected, loggedIn }), [`${Lib.title}: should_answer_tokens_that_nobody_keeps`, should_answer_tokens_that_nobody_keeps]];
}
