// The published JavaScript client of Payment Kit against a running service; test_payment_kit.py
// starts it. Prints one JSON object: what each call answered, by name.
//
// Environment: KIT_FOLDER has the client in its node_modules; KIT_PORT is Envoy's; KIT_KEY is a
// service key; KIT_CUSTOMER a customer without wallets.
const { generateKeyPairSync } = require('node:crypto');
const { createRequire } = require('node:module');
const { join } = require('node:path');

const { KIT_FOLDER, KIT_PORT, KIT_KEY, KIT_CUSTOMER } = process.env;
const fromFolder = createRequire(join(KIT_FOLDER, 'package.json'));

// What the client finds in its surroundings where it is at home: its neighbour's port, and a key to
// sign its calls with, here one of the moment.
const { d, x } = generateKeyPairSync('ed25519').privateKey.export({ format: 'jwk' });
const hex = (text) => Buffer.from(text, 'base64url').toString('hex');
process.env.BLOCKLET_APP_SK = `0x${hex(d)}${hex(x)}`;
process.env.BLOCKLET_COMPONENT_DID = 'z8iZexample';
process.env.BLOCKLET_MOUNT_POINTS = JSON.stringify([
  { did: 'z2qaCNvKMv5GjouKdcDWexv6WqtHbpNPQDnAk', name: 'kit', title: 'Kit', status: 6, port: Number(KIT_PORT) },
]);

// All that is added for ours: the service key, at every call.
const client = fromFolder.resolve('@blocklet/payment-js');
const sdk = createRequire(createRequire(client).resolve('@blocklet/sdk/lib/component'));
sdk('axios').defaults.headers.common.Authorization = `Bearer ${KIT_KEY}`;
console.log = console.info = console.warn = console.error; // the answer alone goes to stdout

const payment = fromFolder('@blocklet/payment-js').default;
const seen = {};

async function call(name, doing) {
  try {
    seen[name] = await doing();
  } catch (error) {
    const response = error.response ?? error.originalError?.response;
    if (!response) throw error;
    seen[name] = { refused: response.status, ...response.data.error };
  }
  return seen[name];
}

async function main() {
  const now = Math.floor(Date.now() / 1000);
  const report = (identifier, value, timestamp = now) =>
    payment.meterEvents.create({
      event_name: 'pages',
      identifier,
      timestamp,
      payload: { customer_id: KIT_CUSTOMER, value },
      metadata: { job: identifier },
    });

  const meter = await call('meter', () =>
    payment.meters.create({ name: 'Pages', event_name: 'pages', unit: 'page', aggregation_method: 'sum' }),
  );
  await call('meter retrieved', () => payment.meters.retrieve(meter.id));
  await call('meter updated', () => payment.meters.update(meter.id, { description: 'printed' }));
  await call('meter deactivated', () => payment.meters.deactivate(meter.id));
  await call('event refused', () => report('job-0', '1'));
  await call('meter activated', () => payment.meters.activate(meter.id));
  await call('meters', () => payment.meters.list({ event_name: 'pages', page: 1, pageSize: 5 }));
  const event = await call('event', () => report('job-1', '12.5'));
  await call('event again', () => report('job-1', '12.5'));
  await call('event owed', () => report('job-2', '10'));
  await call('event retrieved', () => payment.meterEvents.retrieve(event.id));
  await call('events', () => payment.meterEvents.list({ customer_id: KIT_CUSTOMER, limit: 1 }));
  await call('stats', () =>
    payment.meterEvents.stats({ meter_id: meter.id, start: now - 60, end: now + 60, granularity: 'day' }),
  );
  await call('pending amount', () => payment.meterEvents.pendingAmount({ customer_id: KIT_CUSTOMER }));
  const grant = await call('grant', () =>
    payment.creditGrants.create({
      customer_id: KIT_CUSTOMER,
      currency_id: meter.currency_id,
      amount: '100',
      category: 'paid',
      name: 'May',
      expires_at: now + 3600,
      metadata: { order: 'order-1' },
    }),
  );
  await call('grant retrieved', () => payment.creditGrants.retrieve(grant.id));
  await call('grants', () =>
    payment.creditGrants.list({ customer_id: KIT_CUSTOMER, status: 'granted', page: 1, pageSize: 5 }),
  );
  await call('grant summary', () => payment.creditGrants.summary({ customer_id: KIT_CUSTOMER }));
  await call('holders', () => payment.creditGrants.holders({ currency_id: 'CREDIT', page: 1, pageSize: 5 }));
  await call('grant stats', () =>
    payment.creditGrants.stats({ currency_id: 'CREDIT', start_date: now - 3600, end_date: now + 3600 }),
  );
  await call('availability', () =>
    payment.creditGrants.verifyAvailability({ customer_id: KIT_CUSTOMER, currency_id: 'CREDIT', pending_amount: '77.5' }),
  );
  await call('too much', () =>
    payment.creditGrants.verifyAvailability({ customer_id: KIT_CUSTOMER, currency_id: 'CREDIT', pending_amount: '78' }),
  );
  await call('event paid', () => payment.meterEvents.retrieve(event.id));
  await call('grant updated', () => payment.creditGrants.update(grant.id, { metadata: { order: 'order-2' } }));
  await call('grant changed', () => payment.creditGrants.retrieve(grant.id));
  const rows = await call('transactions', () =>
    payment.creditTransactions.list({ customer_id: KIT_CUSTOMER, limit: 10 }),
  );
  await call('transaction', () => payment.creditTransactions.retrieve(rows.list[0].id));
  await call('summary', () =>
    payment.creditTransactions.summary({ customer_id: KIT_CUSTOMER, meter_id: meter.id }),
  );
  await call('nobody', () => payment.meterEvents.list({ customer_id: 'nobody' }));
  process.stdout.write(JSON.stringify(seen));
  process.exit(0); // the client keeps timers
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
