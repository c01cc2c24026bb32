// Questions to the server. One at a time, and the newest only: while an answer is on its way the slider moves on.

export async function get(path) {
  return answered(fetch(path));
}

export async function post(path, body) {
  return answered(send(path, JSON.stringify(body), "application/json"));
}

export async function upload(file) {
  return answered(send("/api/upload", file, "application/octet-stream"));
}

export async function file(body) {
  const answer = await reached(send("/api/file", JSON.stringify(body), "application/json"));
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer.blob();
}

function send(path, body, type) {
  return fetch(path, { method: "POST", body, headers: { "content-type": type } });
}

async function reached(request) {
  try {
    return await request;
  } catch {
    throw new Error("The server does not answer. Is epsball serve still running?");
  }
}

async function answered(request) {
  const answer = await reached(request);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

// A function that may be called at any rate: `ask` runs once at a time, and once more if it was called meanwhile.
export function newest(ask) {
  let busy = false, again = false;
  return async function asked() {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      do {
        again = false;
        await ask();
      } while (again);
    } finally {
      busy = false;
    }
  };
}
