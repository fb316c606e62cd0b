// Asking the service: always this host, with the token if one is needed, errors as sentences.
let token = sessionStorage.getItem("token");

class Problem extends Error {}

const send = async (address, options = {}) => {
  const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(address, { ...options, headers, credentials: "omit", redirect: "error" });
  if (response.status === 401) {
    const given = window.prompt("The token of this service:");
    if (given) {
      token = given;
      sessionStorage.setItem("token", given);
      return send(address, options);
    }
  }
  return response;
};

export const ask = async (address, options) => {
  const response = await send(address, options);
  if (response.status === 204) return null;
  const found = await response.json().catch(() => ({ detail: `the service answered ${response.status}` }));
  if (!response.ok) throw new Problem(found.detail ?? found.title);
  return found;
};

export const problemOf = (error) => error instanceof Problem ? error.message : `The service cannot be reached (${error.message}).`;

// Fields that are null are left out.
export const form = (fields) => {
  const made = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value !== null && value !== undefined) made.append(name, value);
  return made;
};

const kept = new Map();
export const cut = {
  blob: async (address) => {
    const response = await send(address);
    if (!response.ok) throw new Problem(`the service answered ${response.status}`);
    return response.blob();
  },
  // An address an <img> can show, or null where there is no such image.
  image: async (address) => {
    if (!kept.has(address)) {
      const response = await send(address);
      kept.set(address, response.status === 200 ? URL.createObjectURL(await response.blob()) : null);
    }
    return kept.get(address);
  },
};
