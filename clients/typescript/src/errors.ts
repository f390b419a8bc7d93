// What a call ends with when it does not end well: one class, with all that a program reacts to.

import { Code, ConnectError } from "@connectrpc/connect";

import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";

/** Reasons after which nothing was written and the same request may pass in a moment. */
const PASSING = new Set(["CONFLICT", "OVERLOADED", "RATE_LIMITED", "UNAVAILABLE"]);
const UNKNOWN = "OUTCOME_UNKNOWN";
/** Codes of the network and of proxies, which do not say whether the server took the request. */
const UNCERTAIN = new Set([
  Code.Unavailable,
  Code.DeadlineExceeded,
  Code.Unknown,
  Code.Internal,
  Code.Aborted,
]);

/** A call that was refused, or whose answer did not come. */
export class LedgerError extends Error {
  override readonly name = "LedgerError";

  constructor(
    message: string,
    /** Code of gRPC. */
    readonly code: Code,
    /** Name of the ErrorReason without its prefix, for example INSUFFICIENT_CREDIT. */
    readonly reason: string,
    /** Path of the field at fault. Absent where none is. */
    readonly field: string | undefined,
    /** The values that the ErrorReason names. */
    readonly metadata: Readonly<Record<string, string>>,
    /** What the server's log has this call under. Empty where the call did not reach it. */
    readonly requestId: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }

  /** Whether the same request, with the same idempotency key, may pass in a moment. */
  get passing(): boolean {
    return this.outcomeUnknown || PASSING.has(this.reason);
  }

  /** Whether the server may have written what was asked. */
  get outcomeUnknown(): boolean {
    return this.reason === UNKNOWN;
  }

  /** How long the server asks to wait, in seconds; 0 where it does not say. */
  get retryAfterSeconds(): number {
    return Number(this.metadata["retry_after"] ?? 0) || 0;
  }
}

/**
 * The error of a call, whatever was thrown.
 *
 * An error without an ErrorInfo comes from the network or from a proxy. If it does not tell whether
 * the server took the request, its reason is OUTCOME_UNKNOWN.
 */
export function ledgerError(thrown: unknown): LedgerError {
  if (thrown instanceof LedgerError) {
    return thrown;
  }
  const error = ConnectError.from(thrown);
  const info = error.findDetails(ErrorInfoSchema)[0];
  const field = error.findDetails(BadRequestSchema)[0]?.fieldViolations[0]?.field;
  const requestId = error.metadata.get("x-request-id") ?? "";
  const reason = info?.reason ?? (UNCERTAIN.has(error.code) ? UNKNOWN : Code[error.code].toUpperCase());
  return new LedgerError(error.rawMessage, error.code, reason, field, info?.metadata ?? {}, requestId, {
    cause: error,
  });
}
