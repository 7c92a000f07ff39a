// Signing in by the authorization code flow with PKCE, as every other client of this server does; no password comes here.
import { ApiError, ask } from "./http";

const CLIENT = "keiko-console";
const BEGUN = "keiko.begun";
const AGAIN = "Sign in again.";
/** Where answers go. */
const home = () => `${location.origin}/`;

export interface Tokens {
  access_token: string;
  refresh_token: string;
  id_token: string;
  expires_in: number;
}

/** What this tab remembers while the person is away to sign in, or out. */
interface Begun {
  state: string;
  /** Where to go on; of signing in only, like the next two. */
  hash?: string;
  verifier?: string;
  issuer?: string;
}

function remember(begun: Begun): void {
  sessionStorage.setItem(BEGUN, JSON.stringify(begun));
}

function base64url(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function secret(): string {
  return base64url(crypto.getRandomValues(new Uint8Array(32)));
}

/** The proof that only the holder of the verifier can give (RFC 7636). */
export async function challenge(verifier: string): Promise<string> {
  return base64url(new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier))));
}

/** The address to be at for signing in to a server of this name; `null` when it is the one this page is at. */
export function elsewhere(issuer: string, page: URL): string | null {
  const home = new URL(issuer);
  const isNear = [home, page].every((at) => at.hostname === "127.0.0.1" && at.protocol === "http:");
  return home.origin === page.origin || isNear ? null : `${home.origin}/${page.hash}`;
}

/** Whether both are this machine, told apart only by how it is called. */
export function isSameMachine(address: string, page: URL): boolean {
  const there = new URL(address);
  const names = ["localhost", "127.0.0.1", "[::1]"];
  return names.includes(there.hostname) && names.includes(page.hostname) && there.port === page.port;
}

/** Leaves for the page where the person signs in; `finish` has the answer when the browser is back. */
export async function begin(): Promise<void> {
  const { issuer } = await (await ask("/.well-known/oauth-authorization-server", {})).json();
  const page = new URL(location.href);
  const there = elsewhere(issuer, page);
  if (there) {
    if (isSameMachine(there, page)) return location.replace(there);
    throw new ApiError(0, "ELSEWHERE", `This server calls itself ${issuer}.`, `Go there; or have its setting server.public_url say ${page.origin}.`);
  }
  if (!crypto.subtle) throw new ApiError(0, "INSECURE", "Signing in needs HTTPS.", "Ask for https:// in the address of this page.");
  const [state, verifier] = [secret(), secret()];
  remember({ state, verifier, issuer, hash: location.hash });
  const query = new URLSearchParams({
    response_type: "code",
    client_id: CLIENT,
    redirect_uri: home(),
    state,
    code_challenge: await challenge(verifier),
    code_challenge_method: "S256",
  });
  location.replace(`/oauth/authorize?${query}`);
}

/** What the browser came back with: tokens, or that it has signed out; `null` when it comes from somewhere else. */
export async function finish(): Promise<Tokens | "signed out" | null> {
  const query = new URLSearchParams(location.search);
  const state = query.get("state");
  if (state === null) return null;
  const begun: Begun | null = JSON.parse(sessionStorage.getItem(BEGUN) ?? "null");
  history.replaceState(null, "", location.pathname + location.hash);
  // An answer to another one changes nothing: that of this tab may still come.
  if (begun?.state !== state) throw new ApiError(400, "NOT_BEGUN", "This is not the answer to a login of this tab.", AGAIN);
  sessionStorage.removeItem(BEGUN);
  if (begun.verifier === undefined) return "signed out";
  if (begun.issuer !== query.get("iss")) throw new ApiError(400, "NOT_BEGUN", "Another server answers than the one asked.", AGAIN);
  if (begun.hash) location.hash = begun.hash;
  const code = query.get("code");
  if (!code) throw new ApiError(400, query.get("error") ?? "", query.get("error_description") ?? "You were not signed in.", AGAIN);
  return tokens({ grant_type: "authorization_code", code, redirect_uri: home(), code_verifier: begun.verifier });
}

/** The next tokens. */
export function renew(refresh_token: string): Promise<Tokens> {
  return tokens({ grant_type: "refresh_token", refresh_token });
}

async function tokens(form: Record<string, string>): Promise<Tokens> {
  const answer = await ask("/oauth/token", { method: "POST", body: new URLSearchParams({ ...form, client_id: CLIENT }) });
  return answer.json();
}

/** Ends what a refresh token is good for. */
export async function revoke(token: string): Promise<void> {
  await ask("/oauth/revoke", { method: "POST", body: new URLSearchParams({ token, client_id: CLIENT }) });
}

/** Leaves to end the login at this browser. The token goes in a form, so that it stands in no address. */
export function end(id_token_hint: string): void {
  const state = secret();
  remember({ state });
  const form = document.createElement("form");
  form.method = "post";
  form.action = "/oauth/logout";
  const fields = { client_id: CLIENT, id_token_hint, post_logout_redirect_uri: home(), state };
  for (const [name, value] of Object.entries(fields)) {
    form.append(Object.assign(document.createElement("input"), { type: "hidden", name, value }));
  }
  document.body.append(form);
  form.submit();
}
