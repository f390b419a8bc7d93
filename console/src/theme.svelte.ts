// Light or dark: as the system has it, until somebody chooses.

const KEPT = "creditledger.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

class Theme {
  chosen = $state<string | null>(localStorage.getItem(KEPT));
  #system = $state(dark.matches);

  constructor() {
    dark.addEventListener("change", (event) => (this.#system = event.matches));
  }

  get isDark(): boolean {
    return this.chosen === null ? this.#system : this.chosen === "dark";
  }

  toggle(): void {
    this.chosen = this.isDark ? "light" : "dark";
    localStorage.setItem(KEPT, this.chosen);
  }
}

export const theme = new Theme();
