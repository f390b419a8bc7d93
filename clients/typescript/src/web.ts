// A ledger from a browser: gRPC-web through the proxy.

import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { LedgerClient } from "./client.js";
import type { CallOptions } from "./transport.js";

/** A client of the ledger behind the proxy at `url`, for example `https://ledger.example.com`. */
export function connect(options: CallOptions & { url: string }): LedgerClient {
  return new LedgerClient(createGrpcWebTransport({ baseUrl: options.url }), options);
}
