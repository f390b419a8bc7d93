// Who looks at the pages: an API key, kept by this tab alone, and what it is.

import type { ApiKey, LedgerClient } from "@creditledger/client";
import { connect } from "@creditledger/client/web";

const KEPT = "creditledger.key";

class Session {
  /** The key, once the ledger has answered what it is. */
  key = $state.raw<ApiKey>();
  ledger = $state.raw<LedgerClient>();
  /** Why the last session ended, for the page to sign in. */
  ended = $state<"" | "revoked">("");

  /** Whether the key sees more than one customer. */
  get isOperator(): boolean {
    return this.key !== undefined && this.key.scope !== "customer";
  }

  get isAdmin(): boolean {
    return this.key?.scope === "admin";
  }

  /** Begin with a secret. Throws the LedgerError of a secret that is none. */
  async begin(secret: string): Promise<void> {
    const ledger = connect({ url: location.origin, apiKey: secret });
    this.key = await ledger.apiKeys.getCurrentApiKey({});
    this.ledger = ledger;
    this.ended = "";
    sessionStorage.setItem(KEPT, secret);
  }

  /** Begin with the code of a link, which is good once. Throws the LedgerError of one that is not. */
  async open(code: string): Promise<void> {
    const nobody = connect({ url: location.origin, apiKey: "" });
    const { secret } = await nobody.apiKeys.openSession({ code });
    await this.begin(secret);
  }

  /** Go on where a reload of the tab has interrupted. */
  async resume(): Promise<void> {
    const secret = sessionStorage.getItem(KEPT);
    if (secret !== null) {
      await this.begin(secret);
    }
  }

  /** The server does not know the key any more. What the page shows stays on it. */
  lost(): void {
    if (this.key !== undefined) {
      this.ended = "revoked";
    }
  }

  end(): void {
    sessionStorage.removeItem(KEPT);
    if (this.key?.session && this.isAdmin) {
      // Nobody needs its key any more. It ends by itself if this does not arrive.
      void this.ledger?.apiKeys.revokeApiKey({ id: this.key.id }).catch(() => undefined);
    }
    this.key = this.ledger = undefined;
    this.ended = "";
  }
}

export const session = new Session();

/** The code of the link that the page was opened by. It is taken out of the address at once. */
export function codeOfLink(): string | undefined {
  const code = /^#code=([\w-]+)$/.exec(location.hash)?.[1];
  if (code !== undefined) {
    history.replaceState(null, "", location.pathname);
    dispatchEvent(new HashChangeEvent("hashchange")); // which replaceState does not cause
  }
  return code;
}

/** The client of the session. Pages that need it are shown in a session only. */
export function ledger(): LedgerClient {
  if (session.ledger === undefined) {
    throw new Error("no session");
  }
  return session.ledger;
}
