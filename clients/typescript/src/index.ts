// The client without a transport. "@creditledger/client/web" and "…/node" have one.

export { LedgerClient, OpenHold } from "./client.js";
export { LedgerError, ledgerError } from "./errors.js";
export * from "./gen/index.js";
export type { CallOptions } from "./transport.js";
