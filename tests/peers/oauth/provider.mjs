// `oidc-provider` as a peer of Keiko: the same clients, scopes and rules, on a loopback port, in memory, with its own login pages.

import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:http";
import { AFTER_LOGOUT, DEVICE_CODE, REDIRECT } from "./judge.mjs";

// The peer warns about defaults that are right for a test on loopback, at import and later.
console.warn = console.info = () => {};
const { default: Provider, errors } = await import("oidc-provider");

const SCOPES = ["openid", "profile", "email", "offline_access"];
const PERMISSIONS = "tasks.read tasks.create tools.call discovery.read";

// Starts it with `clients` (RFC 7591 metadata). Answers {issuer, provider, close}.
export async function start(clients) {
  const server = createServer();
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const key = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({ format: "jwk" });
  const provider = new Provider(issuer, {
    clients,
    jwks: { keys: [{ ...key, use: "sig", alg: "ES256", kid: "peer" }] },
    cookies: { keys: ["peer"] },
    scopes: SCOPES,
    claims: { openid: ["sub"], profile: ["preferred_username"], email: ["email"] },
    responseTypes: ["code"],
    clientAuthMethods: ["none", "client_secret_basic", "client_secret_post", "private_key_jwt"],
    clientDefaults: { id_token_signed_response_alg: "ES256" },
    pkce: { required: () => true },
    rotateRefreshToken: true,
    issueRefreshToken: (_ctx, client) => client.grantTypeAllowed("refresh_token"),
    findAccount: (_ctx, accountId) => ({ accountId, claims: () => ({ sub: accountId, preferred_username: accountId }) }),
    features: {
      clientCredentials: { enabled: true },
      deviceFlow: { enabled: true, mask: "****-****" },
      devInteractions: { enabled: true },
      introspection: { enabled: true },
      registration: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => issuer,
        useGrantedResource: () => true,
        getResourceServerInfo(_ctx, resource) {
          if (![issuer, `${issuer}/mcp`].includes(resource)) throw new errors.InvalidTarget();
          return { scope: PERMISSIONS, audience: resource, accessTokenTTL: 900, accessTokenFormat: "jwt", jwt: { sign: { alg: "ES256" } } };
        },
      },
    },
  });
  server.on("request", provider.callback());
  return { issuer, provider, server, close: () => (server.closeAllConnections(), server.close()) };
}

export function clientOf({ client_id, client_secret, method, grants }) {
  const codes = !grants || grants.includes("authorization_code");
  return {
    client_id,
    client_secret,
    token_endpoint_auth_method: method,
    redirect_uris: codes ? [REDIRECT] : [],
    post_logout_redirect_uris: [AFTER_LOGOUT],
    response_types: codes ? ["code"] : [],
    grant_types: grants ?? ["authorization_code", "refresh_token", "client_credentials", DEVICE_CODE],
  };
}
