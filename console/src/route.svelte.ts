// Where in the pages one is: the part of the address behind "#", so that links and "back" work.

class Route {
  path = $state<string[]>([]);
  query = $state.raw(new URLSearchParams());

  constructor() {
    this.#read();
    addEventListener("hashchange", () => this.#read());
  }

  #read(): void {
    const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
    this.path = path.split("/").filter(Boolean).map(decodeURIComponent);
    this.query = new URLSearchParams(query);
  }
}

export const route = new Route();

/** The address of a page. */
export function href(...path: string[]): string {
  return `#/${path.map(encodeURIComponent).join("/")}`;
}
