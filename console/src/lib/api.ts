// The API as one person: a session that renews itself, typed refusals, a stream that goes on.
import { ApiError, ask } from "./http";
import * as oauth from "./oauth";
import { SseParser, type Sse } from "./sse";

const API = "/api/v1";
const KEPT = "keiko.session";
const RENEW_EARLY_MS = 30_000;

/** What is needed to go on after a reload. */
interface Kept {
  refresh: string;
  identity: string;
}

export class Api {
  #access = "";
  #renewAt = 0;
  #renewing: Promise<void> | null = null;
  /** In the tab's storage only while no page is open: a copy of the tab gets no share in it, but a session of its own. */
  #kept: Kept | null = null;
  /** Called when the session is over, and why if not by the person's own will. */
  onSignedOut: (problem: ApiError | null) => void = () => {};

  constructor() {
    this.#kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
    sessionStorage.removeItem(KEPT);
    addEventListener("pagehide", () => this.#kept && sessionStorage.setItem(KEPT, JSON.stringify(this.#kept)));
    // What was true when the page was left may not be now.
    addEventListener("pageshow", (event) => event.persisted && location.reload());
  }

  get hasSession(): boolean {
    return this.#kept !== null;
  }

  /** Takes what the browser came back with from signing in or out, if it did. */
  async arrive(): Promise<"signed in" | "signed out" | null> {
    const came = await oauth.finish();
    if (came === null || came === "signed out") return came;
    this.#take(came);
    return "signed in";
  }

  /** Leaves the page. */
  signIn(): Promise<void> {
    return oauth.begin();
  }

  /** Ends the session at the server and here, then leaves the page to end the login at this browser. */
  async signOut(): Promise<void> {
    if (!this.#kept) return;
    const { refresh, identity } = this.#kept;
    await oauth.revoke(refresh);
    this.#forget(null);
    oauth.end(identity);
  }

  get<T>(path: string): Promise<T> {
    return this.#authenticated("GET", path);
  }

  post<T>(path: string, body: unknown): Promise<T> {
    return this.#authenticated("POST", path, body);
  }

  /** Follows a stream of events until it breaks or `signal` ends. */
  async follow(path: string, after: number, onEvent: (event: Sse) => void, signal: AbortSignal): Promise<void> {
    await this.#renew();
    const headers = { Authorization: `Bearer ${this.#access}`, "Last-Event-ID": String(after), Accept: "text/event-stream" };
    const answer = await ask(API + path, { headers, signal }).catch((error: unknown) => {
      if (error instanceof ApiError && error.status === 401) this.#renewAt = 0;
      throw error;
    });
    if (!answer.body) return;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new SseParser();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      parser.push(value).forEach(onEvent);
    }
  }

  async #authenticated<T>(method: string, path: string, body?: unknown): Promise<T> {
    await this.#renew();
    try {
      return await this.#send(method, path, body);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401) throw error;
      this.#renewAt = 0;
      await this.#renew();
      return await this.#send(method, path, body);
    }
  }

  /** One renewal at a time, however many requests wait for it. */
  #renew(): Promise<void> {
    if (Date.now() < this.#renewAt) return Promise.resolve();
    this.#renewing ??= this.#refresh().finally(() => (this.#renewing = null));
    return this.#renewing;
  }

  async #refresh(): Promise<void> {
    const used = this.#kept;
    if (!used) throw new ApiError(401, "NO_SESSION", "You are signed out.", "Sign in again.");
    try {
      const tokens = await oauth.renew(used.refresh);
      if (this.#kept === used) this.#take(tokens);
    } catch (error) {
      // What the server does not know any more is over; what did not reach it is not.
      if (!(error instanceof ApiError) || error.code !== "invalid_grant") throw error;
      const over = new ApiError(401, "SESSION_OVER", "Your session is over.", "Sign in again.");
      if (this.#kept === used) this.#forget(over);
      throw over;
    }
  }

  #take(tokens: oauth.Tokens): void {
    this.#access = tokens.access_token;
    this.#renewAt = Date.now() + tokens.expires_in * 1000 - RENEW_EARLY_MS;
    this.#kept = { refresh: tokens.refresh_token, identity: tokens.id_token };
  }

  #forget(problem: ApiError | null): void {
    this.#access = "";
    this.#renewAt = 0;
    this.#kept = null;
    this.onSignedOut(problem);
  }

  async #send<T>(method: string, path: string, body?: unknown): Promise<T> {
    const headers: Record<string, string> = { Authorization: `Bearer ${this.#access}` };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const answer = await ask(API + path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    return answer.status === 204 ? (null as T) : answer.json();
  }
}
