/** Images: bytes → the inputs of a request in Jina's format. */

import { encodeBase64 } from "./base64.js";

/**
 * The content of an image file, such as a `Buffer`, its data URI, or its URL if the service's setting
 * `allow_image_urls` names the host.
 */
export type ImageInput = Uint8Array | string;

/** The first bytes of each format, as Latin-1. */
const MEDIA_TYPES: readonly [RegExp, string][] = [
  [/^\x89PNG/, "png"],
  [/^\xff\xd8\xff/, "jpeg"],
  [/^GIF8/, "gif"],
  [/^RIFF.{4}WEBP/s, "webp"],
];
/** A service accepts bodies of 8 MiB by default. */
const MAX_REQUEST_LENGTH = 6 * 2 ** 20;

/**
 * Returns requests' inputs, of up to `maxImages` each, which a service accepts by their size.
 * @throws {TypeError} an image is neither a string nor PNG, JPEG, GIF or WebP.
 * @internal
 */
export function splitImages(
  images: readonly ImageInput[],
  maxImages: number,
): { image: string }[][] {
  const batches: { image: string }[][] = [];
  let batch: { image: string }[] | undefined;
  let length = 0;
  for (const [i, content] of images.entries()) {
    const image = toUrl(content, i);
    length += image.length;
    if (batch === undefined || batch.length === maxImages || length > MAX_REQUEST_LENGTH) {
      batches.push((batch = []));
      length = image.length;
    }
    batch.push({ image });
  }
  return batches;
}

function toUrl(image: ImageInput, index: number): string {
  if (typeof image === "string") return image;
  const start = String.fromCharCode(...image.subarray(0, 12));
  const [, type] = MEDIA_TYPES.find(([pattern]) => pattern.test(start)) ?? [];
  if (type === undefined) {
    throw new TypeError(`Image ${index} isn't PNG, JPEG, GIF or WebP. Convert it to one of these.`);
  }
  return `data:image/${type};base64,${encodeBase64(image)}`;
}
