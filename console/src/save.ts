// Files that the server makes. The key goes in a header, so they come through the page.

/** Gather a streamed file and hand it to the reader, saying how many bytes there are so far. */
export async function save(
  pieces: AsyncIterable<{ data: Uint8Array }>,
  name: string,
  onBytes: (count: number) => void = () => undefined,
): Promise<void> {
  const parts: BlobPart[] = [];
  let count = 0;
  for await (const piece of pieces) {
    parts.push(piece.data as Uint8Array<ArrayBuffer>);
    count += piece.data.length;
    onBytes(count);
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
