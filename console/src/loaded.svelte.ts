// What a page asks of the server: the answer, or why there is none.

import { type LedgerError, ledgerError } from "@creditledger/client";

import { session } from "./session.svelte.js";

/** Reasons after which every further call would be refused as well. */
const KEY_IS_GONE = new Set(["KEY_INVALID", "KEY_MISSING"]);

/** The error of a call; the session learns from it that its key is gone. */
function noticed(thrown: unknown): LedgerError {
  const error = ledgerError(thrown);
  if (KEY_IS_GONE.has(error.reason)) {
    session.lost();
  }
  return error;
}

export class Loaded<T> {
  value = $state.raw<T>();
  error = $state.raw<LedgerError>();
  busy = $state(false);
  #turn = 0;

  /** Ask. An answer that a later question has overtaken is dropped; the last value stays till then. */
  async ask(question: () => Promise<T>): Promise<T | undefined> {
    const turn = ++this.#turn;
    this.busy = true;
    try {
      const value = await question();
      if (turn === this.#turn) {
        this.value = value;
        this.error = undefined;
      }
      return value;
    } catch (thrown) {
      const error = noticed(thrown);
      if (turn === this.#turn) {
        this.error = error;
      }
      return undefined;
    } finally {
      if (turn === this.#turn) {
        this.busy = false;
      }
    }
  }
}

/** A list that comes in pages, as far as somebody has scrolled. */
export class Pages<T> {
  items = $state.raw<T[]>([]);
  error = $state.raw<LedgerError>();
  busy = $state(false);
  /** Whether the last page is there. */
  whole = $state(false);
  #token: string | undefined;
  #turn = 0;
  #fetch: (pageToken: { pageToken?: string }) => Promise<[T[], string | undefined]>;

  constructor(fetch: (pageToken: { pageToken?: string }) => Promise<[T[], string | undefined]>) {
    this.#fetch = fetch;
  }

  /** Begin anew, with what the list is narrowed to now. */
  async restart(): Promise<void> {
    this.#turn++;
    this.#token = undefined;
    this.whole = this.busy = false;
    await this.more(true);
  }

  async more(first = false): Promise<void> {
    if (this.busy || this.whole) {
      return;
    }
    const turn = this.#turn;
    this.busy = true;
    try {
      const [items, token] = await this.#fetch(this.#token === undefined ? {} : { pageToken: this.#token });
      if (turn === this.#turn) {
        this.items = first ? items : [...this.items, ...items];
        this.#token = token;
        this.whole = !token;
        this.error = undefined;
      }
    } catch (thrown) {
      const error = noticed(thrown);
      if (turn === this.#turn) {
        this.error = error;
        if (first) {
          this.items = [];
        }
      }
    } finally {
      if (turn === this.#turn) {
        this.busy = false;
      }
    }
  }

  /** Put what has come since on top. */
  prepend(items: T[]): void {
    this.items = [...items, ...this.items];
  }
}
