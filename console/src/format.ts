// How what the server says is written for people. Amounts stay the server's digits.

/** An amount with a space between thousands; the digits are those that were sent. */
export function amount(text: string): string {
  const [whole = "", ...fraction] = text.split(".");
  return [whole.replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f"), ...fraction].join(".");
}

/** A moment as the reader's own clock shows it. */
export function moment(text: string | undefined, locale: string): string {
  return text === undefined ? "" : at(Date.parse(text), locale);
}

export function at(milliseconds: number, locale: string): string {
  return new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeStyle: "medium" }).format(milliseconds);
}

/** A day without its time. */
export function day(text: string | undefined, locale: string): string {
  return text === undefined
    ? ""
    : new Intl.DateTimeFormat(locale, { dateStyle: "medium" }).format(Date.parse(text));
}

/** The share of a whole, for the length of a bar alone. */
export function share(part: string, whole: number): number {
  return whole > 0 ? Math.max(0, Number(part)) / whole : 0;
}

export function isZero(text: string): boolean {
  return !/[1-9]/.test(text);
}

/** A name for one intent: what is sent again under it happens once. */
export function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `console:${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
