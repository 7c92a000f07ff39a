// The API as one person: login, tokens that renew themselves, typed refusals, a stream that goes on.
import { SseParser, type Sse } from "./sse";

const API = "/api/v1";
const KEPT = "keiko.refresh";
const RENEW_EARLY_MS = 30_000;

export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly hint: string,
  ) {
    super(message);
  }
}

interface Tokens {
  access_token: string;
  refresh_token: string;
  expires_in: number;
}

export class Api {
  #access = "";
  #renewAt = 0;
  #renewing: Promise<void> | null = null;
  /** Called when the session is over. */
  onSignedOut: () => void = () => {};

  get hasSession(): boolean {
    return sessionStorage.getItem(KEPT) !== null;
  }

  async login(username: string, password: string, tenant: string, code?: string): Promise<void> {
    const answer = await this.#send("POST", "/auth/login", { username, password, tenant, code });
    this.#take(answer.data.attributes);
  }

  async logout(): Promise<void> {
    try {
      await this.post("/auth/logout", {});
    } catch {
      // The session may be over already; here it ends in any case.
    }
    this.#forget();
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
    const answer = await fetch(API + path, { headers, signal });
    if (!answer.ok || !answer.body) throw await refusal(answer);
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
      return (await this.#send(method, path, body, this.#access)) as T;
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401) throw error;
      this.#renewAt = 0;
      await this.#renew();
      return (await this.#send(method, path, body, this.#access)) as T;
    }
  }

  /** One renewal at a time, however many requests wait for it. */
  #renew(): Promise<void> {
    if (Date.now() < this.#renewAt) return Promise.resolve();
    this.#renewing ??= this.#refresh().finally(() => (this.#renewing = null));
    return this.#renewing;
  }

  async #refresh(): Promise<void> {
    const refresh_token = sessionStorage.getItem(KEPT);
    try {
      if (!refresh_token) throw new ApiError(401, "NO_SESSION", "You are signed out.", "Sign in again.");
      this.#take((await this.#send("POST", "/auth/refresh", { refresh_token })).data.attributes);
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) this.#forget();
      throw error;
    }
  }

  #take(tokens: Tokens): void {
    this.#access = tokens.access_token;
    this.#renewAt = Date.now() + tokens.expires_in * 1000 - RENEW_EARLY_MS;
    sessionStorage.setItem(KEPT, tokens.refresh_token);
  }

  #forget(): void {
    this.#access = "";
    this.#renewAt = 0;
    sessionStorage.removeItem(KEPT);
    this.onSignedOut();
  }

  async #send(method: string, path: string, body?: unknown, access?: string): Promise<any> {
    const headers: Record<string, string> = access ? { Authorization: `Bearer ${access}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let answer: Response;
    try {
      answer = await fetch(API + path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch {
      throw new ApiError(0, "DISCONNECTED", "The server cannot be reached.", "Check that it runs; this page tries again.");
    }
    if (!answer.ok) throw await refusal(answer);
    return answer.status === 204 ? null : answer.json();
  }
}

async function refusal(answer: Response): Promise<ApiError> {
  const body = await answer.json().catch(() => null);
  const said = body?.error ?? {};
  return new ApiError(answer.status, said.code ?? "", said.message ?? `The server answered ${answer.status}.`, said.hint ?? "");
}
