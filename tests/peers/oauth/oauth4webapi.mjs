// `oauth4webapi` against Keiko: node tests/peers/oauth/oauth4webapi.mjs, with KEIKO_URL and KEIKO_PASSWORD.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import * as oauth from "oauth4webapi";
import { Admin, BASE, INSECURE, run } from "./judge.mjs";
import { scenarios } from "./scenarios.mjs";

const POLLS_MAX = 10;

function authentication({ method, client_secret, key }) {
  switch (method) {
    case "client_secret_basic": return oauth.ClientSecretBasic(client_secret);
    case "client_secret_post": return oauth.ClientSecretPost(client_secret);
    case "private_key_jwt": return oauth.PrivateKeyJwt(key);
    default: return oauth.None();
  }
}

class Lib {
  static title = "oauth4webapi";

  static async discovered(algorithm) {
    const issuer = new URL(BASE);
    return oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm, ...INSECURE }));
  }

  static async connect(client, algorithm = "oidc") {
    const lib = new Lib();
    lib.as = lib.metadata = await Lib.discovered(algorithm);
    lib.client = { client_id: client.client_id };
    lib.auth = authentication(client);
    return lib;
  }

  static async register(metadata) {
    const as = await Lib.discovered("oidc");
    const made = await oauth.processDynamicClientRegistrationResponse(await oauth.dynamicClientRegistrationRequest(as, metadata, INSECURE));
    return Lib.connect({ ...made, method: metadata.token_endpoint_auth_method });
  }

  async fresh() {
    const verifier = oauth.generateRandomCodeVerifier();
    const challenge = await oauth.calculatePKCECodeChallenge(verifier);
    return { verifier, challenge, state: oauth.generateRandomState(), nonce: oauth.generateRandomNonce() };
  }

  authorizeUrl(parameters) {
    const url = new URL(this.as.authorization_endpoint);
    for (const [name, value] of Object.entries({ client_id: this.client.client_id, response_type: "code", ...parameters })) url.searchParams.set(name, value);
    return url;
  }

  async code(url, { state, nonce, verifier, maxAge }, additionalParameters) {
    const answer = oauth.validateAuthResponse(this.as, this.client, url, state);
    const redirect = `${url.origin}${url.pathname}`;
    const options = { ...INSECURE, additionalParameters };
    const response = await oauth.authorizationCodeGrantRequest(this.as, this.client, this.auth, answer, redirect, verifier, options);
    return this.#tokens(response, () => oauth.processAuthorizationCodeResponse(this.as, this.client, response, { expectedNonce: nonce, maxAge, requireIdToken: true }));
  }

  async refresh(token, additionalParameters) {
    const response = await oauth.refreshTokenGrantRequest(this.as, this.client, this.auth, token, { ...INSECURE, additionalParameters });
    return this.#tokens(response, () => oauth.processRefreshTokenResponse(this.as, this.client, response));
  }

  async clientCredentials(parameters) {
    const response = await oauth.clientCredentialsGrantRequest(this.as, this.client, this.auth, parameters, INSECURE);
    return this.#tokens(response, () => oauth.processClientCredentialsResponse(this.as, this.client, response));
  }

  async grant(type, parameters) {
    const response = await oauth.genericTokenEndpointRequest(this.as, this.client, this.auth, type, parameters, INSECURE);
    return this.#tokens(response, () => oauth.processGenericTokenEndpointResponse(this.as, this.client, response));
  }

  // Asks once too early, then lets a person decide, then asks at the given pace.
  async device(scope, play) {
    const asked = await oauth.deviceAuthorizationRequest(this.as, this.client, this.auth, { scope }, INSECURE);
    const device = await oauth.processDeviceAuthorizationResponse(this.as, this.client, asked);
    const ask = async () => {
      const response = await oauth.deviceCodeGrantRequest(this.as, this.client, this.auth, device.device_code, INSECURE);
      return this.#tokens(response, () => oauth.processDeviceCodeResponse(this.as, this.client, response));
    };
    await assert.rejects(ask(), (error) => error.error === "authorization_pending");
    await play(device);
    for (let poll = 0; poll < POLLS_MAX; poll++) {
      await sleep((device.interval ?? 5) * 1000);
      try {
        return await ask();
      } catch (error) {
        if (!["authorization_pending", "slow_down"].includes(error.error)) throw error;
      }
    }
    throw new Error("the device never got its token");
  }

  async introspect(token) {
    return oauth.processIntrospectionResponse(this.as, this.client, await oauth.introspectionRequest(this.as, this.client, this.auth, token, INSECURE));
  }

  async revoke(token, hint) {
    const options = { ...INSECURE, additionalParameters: hint ? { token_type_hint: hint } : {} };
    await oauth.processRevocationResponse(await oauth.revocationRequest(this.as, this.client, this.auth, token, options));
  }

  async userinfo(token, sub) {
    return oauth.processUserInfoResponse(this.as, this.client, sub, await oauth.userInfoRequest(this.as, this.client, token, INSECURE));
  }

  async #tokens(response, process) {
    const tokens = await process();
    if (tokens.id_token) await oauth.validateApplicationLevelSignature(this.as, response, INSECURE);
    return { tokens, id: oauth.getValidatedIdTokenClaims(tokens) };
  }

  static more() {
    const described = async (identifier) => oauth.processResourceDiscoveryResponse(identifier, await oauth.resourceDiscoveryRequest(identifier, INSECURE));
    return [
      ["oauth4webapi: should_describe_its_resources", async () => {
        for (const path of ["", "/mcp"]) {
          const told = await described(new URL(BASE + path));
          assert.equal(told.resource, BASE + path);
          assert.deepEqual(told.authorization_servers, [BASE]);
        }
      }],
      ["oauth4webapi: should_point_from_a_refusal_to_the_description", async () => {
        const bare = await fetch(`${BASE}/mcp`, { method: "POST", headers: { "content-type": "application/json" }, body: "{}" });
        assert.equal(bare.status, 401);
        assert.match(bare.headers.get("www-authenticate") ?? "", /^Bearer\b/);
        assert.ok(bare.headers.get("www-authenticate").includes(`resource_metadata="${BASE}/.well-known/oauth-protected-resource/mcp"`));
      }],
    ];
  }
}

await run(scenarios(Lib, await Admin.login()));
