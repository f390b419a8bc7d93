import "../app.css";

import { mount } from "svelte";

import Reference from "./Reference.svelte";

mount(Reference, { target: document.getElementById("app") as HTMLElement });
