// The words of the pages, in the reader's language.

import { en } from "./en.js";
import { zh } from "./zh.js";

export type Language = "en" | "zh";

const KEPT = "creditledger.language";

class Words {
  language = $state<Language>(first());

  get text(): typeof en {
    return this.language === "zh" ? zh : en;
  }

  /** For dates and numbers. */
  get locale(): string {
    return this.language === "zh" ? "zh-CN" : "en-GB";
  }

  use(language: Language): void {
    this.language = language;
    localStorage.setItem(KEPT, language);
  }
}

function first(): Language {
  const kept = localStorage.getItem(KEPT);
  if (kept === "en" || kept === "zh") {
    return kept;
  }
  return navigator.language.startsWith("zh") ? "zh" : "en";
}

export const words = new Words();
