// A ledger from node: gRPC over HTTP/2.

import { createGrpcTransport } from "@connectrpc/connect-node";

import { LedgerClient } from "./client.js";
import type { CallOptions } from "./transport.js";

/** A client of the ledger at `url`, the server itself or the proxy before it. */
export function connect(options: CallOptions & { url: string }): LedgerClient {
  return new LedgerClient(createGrpcTransport({ baseUrl: options.url }), options);
}
