const ITEM = "embedserve-api-key";

/** The key that requests are sent with. The browser forgets it when the tab is closed. */
class ApiKey extends EventTarget {
  get value() {
    return sessionStorage.getItem(ITEM) ?? "";
  }

  /** Sets the key, or forgets it if it is empty, and dispatches `change`. */
  set value(key) {
    if (key) sessionStorage.setItem(ITEM, key);
    else sessionStorage.removeItem(ITEM);
    this.dispatchEvent(new Event("change"));
  }

  /** Asks the user for a key: dispatches `request`. */
  request() {
    this.dispatchEvent(new Event("request"));
  }
}

export const apiKey = new ApiKey();
