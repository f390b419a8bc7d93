// What a service does with the TypeScript client; test_typescript.py starts it and reads what it
// prints: one JSON object of what each step came to.
//
// Environment: LEDGER_URL is the proxy's, LEDGER_KEY an admin key, LEDGER_WALLET a wallet of 10 USD.
import { LedgerError } from "@creditledger/client";
import { connect } from "@creditledger/client/node";

const { LEDGER_URL: url, LEDGER_KEY: apiKey, LEDGER_WALLET: walletId } = process.env;
const ledger = connect({ url, apiKey });
const seen = {};

async function refusal(doing) {
  try {
    await doing();
    return "no refusal";
  } catch (error) {
    if (!(error instanceof LedgerError)) {
      return `${error.name}: ${error.message}`;
    }
    const { reason, field = null, metadata, requestId } = error;
    return { reason, field, metadata, hasRequestId: requestId !== "", tellsKey: `${error.stack}`.includes(apiKey) };
  }
}

const first = await ledger.consume(walletId, "0.25", "call:1");
const again = await ledger.consume(walletId, "0.25", "call:1");
seen.consumed = [first.wallet.available, first.replayed, again.replayed, first.postingId === again.postingId];
seen.poor = await refusal(() => ledger.consume(walletId, "100", "call:2"));
seen.malformed = await refusal(() => ledger.consume(walletId, "1,5", "call:2"));
seen.number = await refusal(() => ledger.consume(walletId, 0.1, "call:2"));
seen.stranger = await refusal(() => connect({ url, apiKey: "sk-example" }).wallets.getWallet({ walletId }));

seen.captured = await ledger.hold({ walletId, amount: "2", idempotencyKey: "job:1" }, async (hold) => {
  await hold.capture("0.50", { final: false });
  await hold.capture("0.75");
  return [hold.credit.status, hold.credit.captured, hold.credit.held];
});
seen.broken = await refusal(() =>
  ledger.hold({ walletId, amount: "3", idempotencyKey: "job:2" }, async () => {
    throw new Error("the model is away");
  }),
);
seen.holds = [];
for await (const hold of ledger.listHolds({ walletId, pageSize: 1 })) {
  seen.holds.push([hold.amount, hold.status]);
}
seen.amounts = [];
for await (const transaction of ledger.listTransactions({ customerId: first.wallet.customerId, pageSize: 2 })) {
  seen.amounts.push(transaction.amount);
}

seen.watched = [];
const stop = new AbortController();
for await (const { transactions } of ledger.watch({ after: "beginning", walletId }, stop.signal)) {
  seen.watched.push(...transactions.map((transaction) => transaction.amount));
  if (seen.watched.length === seen.amounts.length) {
    stop.abort();
  }
}
process.stdout.write(JSON.stringify(seen));
