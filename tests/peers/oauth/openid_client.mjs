// `openid-client` against Keiko: node tests/peers/oauth/openid_client.mjs, with KEIKO_URL and KEIKO_PASSWORD.

import assert from "node:assert/strict";
import * as client from "openid-client";
import { AFTER_LOGOUT, Admin, BASE, person, refused, run } from "./judge.mjs";
import { scenarios } from "./scenarios.mjs";

function authentication({ method, client_secret, key }) {
  switch (method) {
    case "client_secret_basic": return client.ClientSecretBasic(client_secret);
    case "client_secret_post": return client.ClientSecretPost(client_secret);
    case "private_key_jwt": return client.PrivateKeyJwt(key);
    default: return client.None();
  }
}

const EXECUTE = [client.allowInsecureRequests, client.enableNonRepudiationChecks];

class Lib {
  static title = "openid-client";

  static of(config) {
    const lib = new Lib();
    lib.config = config;
    lib.client = config.clientMetadata();
    lib.metadata = config.serverMetadata();
    return lib;
  }

  static async connect(settings, algorithm = "oidc") {
    const options = { algorithm, execute: EXECUTE };
    return Lib.of(await client.discovery(new URL(BASE), settings.client_id, {}, authentication(settings), options));
  }

  static async register(metadata) {
    return Lib.of(await client.dynamicClientRegistration(new URL(BASE), metadata, client.None(), { execute: EXECUTE }));
  }

  async fresh() {
    const verifier = client.randomPKCECodeVerifier();
    const challenge = await client.calculatePKCECodeChallenge(verifier);
    return { verifier, challenge, state: client.randomState(), nonce: client.randomNonce() };
  }

  authorizeUrl(parameters) {
    return client.buildAuthorizationUrl(this.config, parameters);
  }

  async code(url, { state, nonce, verifier, maxAge }, parameters) {
    const checks = { expectedState: state, expectedNonce: nonce, pkceCodeVerifier: verifier, maxAge, idTokenExpected: true };
    return told(await client.authorizationCodeGrant(this.config, url, checks, parameters));
  }

  async refresh(token, parameters) {
    return told(await client.refreshTokenGrant(this.config, token, parameters));
  }

  async clientCredentials(parameters) {
    return told(await client.clientCredentialsGrant(this.config, parameters));
  }

  async grant(type, parameters) {
    return told(await client.genericGrantRequest(this.config, type, parameters));
  }

  async device(scope, play) {
    const device = await client.initiateDeviceAuthorization(this.config, { scope });
    await play(device);
    return told(await client.pollDeviceAuthorizationGrant(this.config, device, {}, { signal: AbortSignal.timeout(40_000) }));
  }

  introspect(token) {
    return client.tokenIntrospection(this.config, token);
  }

  revoke(token, hint) {
    return client.tokenRevocation(this.config, token, hint ? { token_type_hint: hint } : {});
  }

  userinfo(token, sub) {
    return client.fetchUserInfo(this.config, token, sub);
  }

  static more(admin, { connected, loggedIn }) {
    return [
      ["openid-client: should_log_out", async () => {
        const [lib, who] = [await connected(), person()];
        const { tokens } = await loggedIn(lib, {}, { who });
        const url = client.buildEndSessionUrl(lib.config, { id_token_hint: tokens.id_token, post_logout_redirect_uri: AFTER_LOGOUT, state: "bye" });
        const back = await who.visit(url, { until: AFTER_LOGOUT, decision: "allow" });
        assert.equal(back.searchParams.get("state"), "bye");
        await refused(loggedIn(lib, { prompt: "none" }, { who }), "login_required");
      }],
    ];
  }
}

function told(tokens) {
  return { tokens, id: tokens.claims() };
}

await run(scenarios(Lib, await Admin.login()));
