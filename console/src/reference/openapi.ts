// What of an OpenAPI document the page reads.

export interface Schema {
  $ref?: string;
  type?: string | string[];
  format?: string;
  description?: string;
  enum?: string[];
  properties?: Record<string, Schema>;
  required?: string[];
  items?: Schema;
  additionalProperties?: Schema;
}

export interface Content {
  schema: Schema;
  example?: unknown;
}

export interface Parameter {
  $ref?: string;
  name: string;
  in: "path" | "query" | "header";
  required: boolean;
  description: string;
  schema: Schema;
}

export interface Response {
  $ref?: string;
  description: string;
  content?: Record<string, Content>;
}

export interface Operation {
  operationId: string;
  tags: string[];
  summary: string;
  description: string;
  parameters: Parameter[];
  requestBody?: { content: Record<string, Content> };
  responses: Record<string, Response>;
}

export interface Document {
  info: { title: string; version: string; description: string };
  tags: { name: string; description: string }[];
  paths: Record<string, Record<string, Operation>>;
  components: {
    schemas: Record<string, Schema>;
    parameters: Record<string, Parameter>;
    responses: Record<string, Response>;
  };
}

export interface Route {
  verb: string;
  path: string;
  operation: Operation;
}

/** All routes of a service, by path. */
export function routesOf(document: Document, tag: string): Route[] {
  return Object.entries(document.paths).flatMap(([path, verbs]) =>
    Object.entries(verbs)
      .filter(([, operation]) => operation.tags.includes(tag))
      .map(([verb, operation]) => ({ verb, path, operation })),
  );
}

/** What a reference points to, or the thing itself. */
export function resolved<T extends { $ref?: string }>(document: Document, one: T): T {
  if (one.$ref === undefined) {
    return one;
  }
  const [, , kind, name] = one.$ref.split("/") as [string, string, keyof Document["components"], string];
  return { ...(document.components[kind][name] as unknown as T), ...(one as object), $ref: undefined } as T;
}

/** A type in a word. */
export function typeName(schema: Schema): string {
  if (schema.$ref !== undefined) {
    return schema.$ref.split("/").at(-1) ?? "";
  }
  if (schema.items !== undefined) {
    return `list of ${typeName(schema.items)}`;
  }
  if (schema.additionalProperties !== undefined) {
    return `map to ${typeName(schema.additionalProperties)}`;
  }
  const name = Array.isArray(schema.type) ? schema.type.join(" or ") : (schema.type ?? "any");
  return schema.format === undefined ? name : `${name} (${schema.format})`;
}
