// The official TypeScript client of MCP: from a 401 to a list of tools, with everything in between found out by itself.

import assert from "node:assert/strict";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { UnauthorizedError } from "@modelcontextprotocol/sdk/client/auth.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { BASE, REDIRECT, decoded, person, run, unique } from "./judge.mjs";

const MCP = `${BASE}/mcp`;

// What the client keeps, and the browser that it opens.
class Provider {
  state = () => this.kept;
  constructor(method) {
    Object.assign(this, { method, kept: unique("state"), saved: 0 });
  }
  get redirectUrl() { return REDIRECT; }
  get clientMetadata() {
    return { client_name: unique("mcp"), redirect_uris: [REDIRECT], grant_types: ["authorization_code", "refresh_token"], response_types: ["code"], token_endpoint_auth_method: this.method };
  }
  clientInformation() { return this.client; }
  saveClientInformation(client) { this.client = client; }
  tokens() { return this.held; }
  saveTokens(tokens) { this.held = tokens; this.saved++; }
  codeVerifier() { return this.verifier; }
  saveCodeVerifier(verifier) { this.verifier = verifier; }
  async redirectToAuthorization(url) { this.asked = url; this.answer = await person().visit(url, { until: REDIRECT, decision: "allow" }); }
}

function opened(authProvider, seen) {
  const traced = async (url, init) => {
    const response = await fetch(url, init);
    seen.push(`${init?.method ?? "GET"} ${new URL(url).pathname} ${response.status}`);
    return response;
  };
  const client = new Client({ name: "judge", version: "1" }, { capabilities: {} });
  return [client, new StreamableHTTPClientTransport(new URL(MCP), { authProvider, fetch: traced })];
}

async function tools(provider, seen) {
  const [client, transport] = opened(provider, seen);
  await client.connect(transport);
  const { tools } = await client.listTools();
  await client.close();
  return tools;
}

async function signedIn(method) {
  const [provider, seen] = [new Provider(method), []];
  const [client, transport] = opened(provider, seen);
  await assert.rejects(client.connect(transport), UnauthorizedError);
  assert.deepEqual(seen.slice(0, 3), ["POST /mcp 401", "GET /.well-known/oauth-protected-resource/mcp 200", "GET /.well-known/oauth-authorization-server 200"]);
  assert.ok(seen.includes("POST /oauth/register 201"), seen);
  assert.equal(provider.asked.searchParams.get("resource"), MCP);
  const back = provider.answer.searchParams;
  assert.deepEqual([back.get("state"), back.get("iss")], [provider.kept, BASE]);
  await transport.finishAuth(back.get("code"));
  return [provider, seen];
}

function scenario(method) {
  return async () => {
    const [provider, seen] = await signedIn(method);
    assert.deepEqual([decoded(provider.held.access_token).claims.aud].flat(), [MCP]);
    assert.ok((await tools(provider, seen)).length > 0);
    const { refresh_token } = provider.held;
    provider.held = { ...provider.held, access_token: "not a token" };
    assert.ok((await tools(provider, seen)).length > 0, "refreshed by itself after a 401");
    assert.equal(provider.saved, 2);
    assert.notEqual(provider.held.refresh_token, refresh_token);
  };
}

await run(["none", "client_secret_basic", "client_secret_post"].map((method) => [`mcp: should_sign_in_by_itself_as_${method}`, scenario(method)]));
