// Calls that arrive: each carries the key, ends in time, and is repeated where that is safe.

import { type DescMethodUnary, getOption } from "@bufbuild/protobuf";
import type { StreamResponse, Transport } from "@connectrpc/connect";

import { ledgerError } from "./errors.js";
import { http } from "./gen/google/api/annotations_pb.js";

/** How a client calls. */
export interface CallOptions {
  /** Secret of the API key, or what answers it for each call; empty for calls that need none. */
  apiKey: string | (() => string);
  /** How long a call may take with all its repetitions. Absent means 30,000. */
  timeoutMs?: number;
  /** How long one attempt may take. Absent means 10,000. */
  attemptTimeoutMs?: number;
  /** How often a call is sent at most. Absent means 4. */
  attempts?: number;
}

const WAIT_MS = 100;
const WAIT_MS_MAX = 5_000;

/** The transport with a key, deadlines, typed errors, and repetitions of what is safe to repeat. */
export function patient(transport: Transport, options: CallOptions): Transport {
  const { timeoutMs = 30_000, attemptTimeoutMs = 10_000, attempts = 4 } = options;

  function headers(header: HeadersInit | undefined): Headers {
    const found = new Headers(header);
    const key = typeof options.apiKey === "string" ? options.apiKey : options.apiKey();
    if (key !== "") {
      found.set("authorization", `Bearer ${key}`);
    }
    return found;
  }

  return {
    async unary(method, signal, asked, header, input, contextValues) {
      const end = Date.now() + (asked ?? timeoutMs);
      const last = repeats(method, input) ? attempts : 1;
      for (let attempt = 1; ; attempt++) {
        const left = Math.max(1, Math.min(attemptTimeoutMs, end - Date.now()));
        try {
          return await transport.unary(method, signal, left, headers(header), input, contextValues);
        } catch (thrown) {
          const error = ledgerError(thrown);
          const wait = pause(attempt) + error.retryAfterSeconds * 1000;
          const late = Date.now() + wait >= end;
          if (signal?.aborted || !error.passing || attempt >= last || late) {
            throw error;
          }
          await new Promise((resolve) => setTimeout(resolve, wait));
        }
      }
    },
    async stream(method, signal, asked, header, input, contextValues) {
      try {
        const response = await transport.stream(
          method, signal, asked, headers(header), input, contextValues,
        );
        return { ...response, message: typed(response.message) } as StreamResponse<
          typeof method.input,
          typeof method.output
        >;
      } catch (thrown) {
        throw ledgerError(thrown);
      }
    },
  };
}

/** How long to wait before the next attempt: twice as long each time, and never in step. */
export function pause(attempt: number): number {
  const most = Math.min(WAIT_MS_MAX, WAIT_MS * 2 ** (attempt - 1));
  return most * (0.5 + Math.random() / 2);
}

/** Whether a second request changes nothing more: it reads, or each change has a key. */
function repeats(method: DescMethodUnary, input: object): boolean {
  if (getOption(method, http).pattern.case === "get") {
    return true;
  }
  const { idempotencyKey, postings } = input as { idempotencyKey?: string; postings?: object[] };
  return Boolean(idempotencyKey) || (postings?.every((one) => repeats(method, one)) ?? false);
}

async function* typed<T>(messages: AsyncIterable<T>): AsyncIterable<T> {
  try {
    yield* messages;
  } catch (thrown) {
    throw ledgerError(thrown);
  }
}
