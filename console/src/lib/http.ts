// Requests to the server that the page came from, with refusals that say what to do.
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly hint: string,
    readonly details: Record<string, unknown> = {},
  ) {
    super(message);
  }
}

/** The answer of a request, if it is no refusal. */
export async function ask(path: string, init: RequestInit): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, init);
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError(0, "DISCONNECTED", "The server cannot be reached.", "Check that it runs, and try again.");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

/** A refusal in either form: the API's `error` is an object, that of the sign-in a word with a description beside it. */
async function refusal(answer: Response): Promise<ApiError> {
  const body = await answer.json().catch(() => null);
  const said = typeof body?.error === "string" ? { code: body.error, message: body.error_description } : (body?.error ?? {});
  return new ApiError(answer.status, said.code ?? "", said.message ?? `The server answered ${answer.status}.`, said.hint ?? "", said.details);
}
