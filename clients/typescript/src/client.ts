// The client: the contract's services, and the few ways to use them that need more than one call.

import type { DescMessage, MessageInitShape } from "@bufbuild/protobuf";
import { type Client, type Transport, createClient } from "@connectrpc/connect";

import { ledgerError } from "./errors.js";
import {
  ApiKeyService,
  BillingService,
  type CaptureHoldRequestSchema,
  type CaptureHoldResponse,
  ClockService,
  type CreditGrant,
  CreditGrantService,
  type CreditGrantServiceListRequestSchema,
  type CreditTransaction,
  CreditTransactionService,
  type CreditTransactionServiceListRequestSchema,
  type CreditTransactionServiceWatchRequestSchema,
  type CreditTransactionServiceWatchResponse,
  type Customer,
  type HeldCredit,
  type HoldRequestSchema,
  type ListCustomersRequestSchema,
  type ListHoldsRequestSchema,
  type ListWalletsRequestSchema,
  OperatorService,
  PaymentKitService,
  type Posting,
  type PostRequestSchema,
  RegistryService,
  StatementService,
  type Wallet,
  WalletService,
  WebhookService,
} from "./gen/index.js";
import { type CallOptions, patient, pause } from "./transport.js";

/** A request without the fields that the method fills in. */
type Request<Schema extends DescMessage, Filled extends string = never> = Omit<
  MessageInitShape<Schema>,
  Filled | "$typeName" | "$unknown"
>;

const HEARTBEAT_SECONDS = 10;
/** A watch is gone that misses this many of its heartbeats. */
const MISSED_MAX = 3;

/** A ledger, under one API key. */
export class LedgerClient {
  readonly apiKeys: Client<typeof ApiKeyService>;
  readonly billing: Client<typeof BillingService>;
  readonly clock: Client<typeof ClockService>;
  readonly grants: Client<typeof CreditGrantService>;
  readonly operators: Client<typeof OperatorService>;
  readonly paymentKit: Client<typeof PaymentKitService>;
  readonly registry: Client<typeof RegistryService>;
  readonly statements: Client<typeof StatementService>;
  readonly transactions: Client<typeof CreditTransactionService>;
  readonly wallets: Client<typeof WalletService>;
  readonly webhooks: Client<typeof WebhookService>;
  /** For services that are not among the above: `createClient(SomeService, client.transport)`. */
  readonly transport: Transport;

  constructor(transport: Transport, options: CallOptions) {
    this.transport = patient(transport, options);
    this.apiKeys = createClient(ApiKeyService, this.transport);
    this.billing = createClient(BillingService, this.transport);
    this.clock = createClient(ClockService, this.transport);
    this.grants = createClient(CreditGrantService, this.transport);
    this.operators = createClient(OperatorService, this.transport);
    this.paymentKit = createClient(PaymentKitService, this.transport);
    this.registry = createClient(RegistryService, this.transport);
    this.statements = createClient(StatementService, this.transport);
    this.transactions = createClient(CreditTransactionService, this.transport);
    this.wallets = createClient(WalletService, this.transport);
    this.webhooks = createClient(WebhookService, this.transport);
  }

  /** Spend credit. The key names this one intent: a repetition under it charges nothing more. */
  async consume(
    walletId: string,
    amount: string,
    idempotencyKey: string,
    more: Request<typeof PostRequestSchema, "walletId" | "idempotencyKey" | "operation"> = {},
  ): Promise<Posting> {
    const operation = { case: "consumption" as const, value: { amount: money(amount) } };
    return this.post({ ...more, walletId, idempotencyKey, operation });
  }

  /** Write one posting. If no answer tells what became of it, the ledger is asked once more. */
  async post(request: MessageInitShape<typeof PostRequestSchema>): Promise<Posting> {
    try {
      return await this.wallets.post(request);
    } catch (thrown) {
      const error = ledgerError(thrown);
      const { walletId = "", idempotencyKey = "" } = request;
      if (!error.outcomeUnknown || request.validateOnly) {
        throw error;
      }
      try {
        return await this.wallets.getPosting({ walletId, idempotencyKey });
      } catch {
        throw error; // "not found" may yet change: an attempt may still be under way
      }
    }
  }

  /** Set credit aside while `use` runs; what it has not captured by its end is released. */
  async hold<T>(
    request: Request<typeof HoldRequestSchema>,
    use: (hold: OpenHold) => Promise<T>,
  ): Promise<T> {
    money(request.amount);
    const { hold } = await this.wallets.hold({ ...request, view: "FULL" });
    if (hold === undefined) {
      throw new Error("the answer to a hold has no hold");
    }
    const open = new OpenHold(this, hold, request.idempotencyKey ?? "");
    let ended = false;
    try {
      const result = await use(open);
      ended = true;
      await open.release();
      return result;
    } catch (thrown) {
      if (!ended) {
        await open.release().catch(() => undefined); // its deadline ends it too
      }
      throw thrown;
    }
  }

  /** All transactions that the filters match, newest first. */
  listTransactions(
    filters: Request<typeof CreditTransactionServiceListRequestSchema> = {},
  ): AsyncGenerator<CreditTransaction> {
    return walk(async (pageToken) => {
      const page = await this.transactions.list({ pageSize: 100, ...filters, ...pageToken });
      return [page.list, page.paging?.nextPageToken];
    });
  }

  /** All grants that the filters match, newest first. */
  listGrants(
    filters: Request<typeof CreditGrantServiceListRequestSchema> = {},
  ): AsyncGenerator<CreditGrant> {
    return walk(async (pageToken) => {
      const page = await this.grants.list({ pageSize: 100, ...filters, ...pageToken });
      return [page.creditGrants, page.nextPageToken];
    });
  }

  /** All wallets that the filters match, by id. */
  listWallets(filters: Request<typeof ListWalletsRequestSchema> = {}): AsyncGenerator<Wallet> {
    return walk(async (pageToken) => {
      const page = await this.wallets.listWallets({ pageSize: 100, ...filters, ...pageToken });
      return [page.wallets, page.nextPageToken];
    });
  }

  /** All holds of a wallet, newest first. */
  listHolds(filters: Request<typeof ListHoldsRequestSchema>): AsyncGenerator<HeldCredit> {
    return walk(async (pageToken) => {
      const page = await this.wallets.listHolds({ pageSize: 100, ...filters, ...pageToken });
      return [page.holds, page.nextPageToken];
    });
  }

  /** All customers that the filters match. */
  listCustomers(
    filters: Request<typeof ListCustomersRequestSchema> = {},
  ): AsyncGenerator<Customer> {
    return walk(async (pageToken) => {
      const page = await this.registry.listCustomers({ pageSize: 100, ...filters, ...pageToken });
      return [page.customers, page.nextPageToken];
    });
  }

  /**
   * Transactions as they are committed, without end: each message has those since the one before,
   * and the cursor to ask `after` when they have been dealt with. A connection that breaks or falls
   * silent is made anew, behind the last message. A refusal ends it.
   */
  async *watch(
    request: Request<typeof CreditTransactionServiceWatchRequestSchema> = {},
    signal?: AbortSignal,
  ): AsyncGenerator<CreditTransactionServiceWatchResponse> {
    let { after, heartbeatSeconds = HEARTBEAT_SECONDS } = request;
    for (let failures = 0; !signal?.aborted; ) {
      const gone = new AbortController();
      const give = () => gone.abort();
      signal?.addEventListener("abort", give);
      let alarm = setTimeout(give, heartbeatSeconds * MISSED_MAX * 1000);
      try {
        const asked = { ...request, heartbeatSeconds, ...(after === undefined ? {} : { after }) };
        for await (const message of this.transactions.watch(asked, { signal: gone.signal })) {
          clearTimeout(alarm); // what the caller does with the message takes as long as it takes
          failures = 0;
          yield message;
          after = message.cursor;
          alarm = setTimeout(give, heartbeatSeconds * MISSED_MAX * 1000);
        }
      } catch (thrown) {
        if (!signal?.aborted && !gone.signal.aborted && !ledgerError(thrown).passing) {
          throw thrown;
        }
      } finally {
        clearTimeout(alarm);
        signal?.removeEventListener("abort", give);
        gone.abort();
      }
      failures += 1;
      await new Promise((resolve) => setTimeout(resolve, pause(failures)));
    }
  }
}

/** Credit that is set aside, to be captured in one or in several parts. */
export class OpenHold {
  #captures = 0;

  constructor(
    private readonly client: LedgerClient,
    /** The hold as the last answer had it. */
    public credit: HeldCredit,
    private readonly key: string,
  ) {}

  /** Consume what was used, and give the rest back; `final: false` keeps the rest for more. */
  async capture(
    amount?: string,
    more: Request<typeof CaptureHoldRequestSchema, "holdId" | "amount"> = {},
  ): Promise<CaptureHoldResponse> {
    const idempotencyKey = more.idempotencyKey ?? `${this.key}:capture:${this.#captures}`;
    const part = amount === undefined ? {} : { amount: money(amount) };
    const rest = { holdId: this.credit.id, idempotencyKey, view: "FULL" };
    const answer = await this.client.wallets.captureHold({ final: true, ...more, ...part, ...rest });
    this.#captures += 1;
    this.credit = answer.hold ?? this.credit;
    return answer;
  }

  /** End it and give back what is left. What has ended already stays as it is. */
  async release(): Promise<void> {
    if (this.credit.status === "open") {
      const request = { holdId: this.credit.id, idempotencyKey: `${this.key}:release` };
      const { hold } = await this.client.wallets.releaseHold(request);
      this.credit = hold ?? this.credit;
    }
  }
}

/** Follow pages to the last one. */
async function* walk<T>(
  ask: (pageToken: { pageToken?: string }) => Promise<[T[], string | undefined]>,
): AsyncGenerator<T> {
  for (let token: string | undefined, first = true; first || token; first = false) {
    const [items, next] = await ask(token === undefined ? {} : { pageToken: token });
    yield* items;
    token = next;
  }
}

/** An amount as it is sent. A number would round it before anybody sees it. */
function money(amount: unknown): string {
  if (typeof amount !== "string") {
    throw new TypeError(`an amount is a string such as "0.0123", never a ${typeof amount}`);
  }
  return amount;
}
