"use strict";
// Passkeys in the browser (W3C Web Authentication): the coordinator writes what is signed, the authenticator asks who
// the person is, and the answer goes back unchanged. Nothing is fetched from elsewhere, nothing is built from text.

const csrf = document.querySelector('meta[name="csrf"]')?.content ?? "";

const encode = (buffer) =>
  btoa(String.fromCharCode(...new Uint8Array(buffer))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const decode = (text) =>
  Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));

class Refused extends Error {}

async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-cloister-csrf": csrf },
    body: JSON.stringify(body),
  });
  const text = await answer.text();
  const said = text ? JSON.parse(text) : null;
  if (!answer.ok) throw new Refused(`${said?.detail ?? "The coordinator refused."} ${said?.remedy ?? ""}`.trim());
  return said;
}

const named = (list) => (list ?? []).map((entry) => ({ ...entry, id: decode(entry.id) }));

async function registerPasskey() {
  const { challenge, options } = await post("/v1/passkeys/options", {});
  const made = await navigator.credentials.create({
    publicKey: {
      ...options,
      challenge: decode(options.challenge),
      user: { ...options.user, id: decode(options.user.id) },
      excludeCredentials: named(options.excludeCredentials),
    },
  });
  await post("/v1/passkeys", {
    challenge,
    credential: {
      id: made.id,
      rawId: encode(made.rawId),
      type: made.type,
      response: {
        clientDataJSON: encode(made.response.clientDataJSON),
        attestationObject: encode(made.response.attestationObject),
      },
    },
  });
}

async function decide(form, decision) {
  const { release, digest } = form.dataset;
  const reason = form.elements.reason.value;
  const asked = await post(`/v1/releases/${release}/passkey-challenge`, { decision, reason });
  const approval = JSON.parse(new TextDecoder().decode(decode(asked.payload)));
  if (approval.subject_digest !== digest || approval.decision !== decision)
    throw new Refused("The release changed while you read it. Load the page again.");
  await post(`/v1/releases/${release}/approvals`, { envelope: await sign(asked), reason });
}

async function waive(form) {
  const { release, digest } = form.dataset;
  const reason = form.elements.why.value;
  const [pack, rule] = form.elements.rule.value.split(" ");
  const days = Number(form.elements.days.value);
  const asked = await post(`/v1/releases/${release}/waivers/passkey-challenge`, { pack, rule, days, reason });
  const waiver = JSON.parse(new TextDecoder().decode(decode(asked.payload)));
  if (waiver.subject_digest !== digest || waiver.pack !== pack || waiver.rule !== rule)
    throw new Refused("The release changed while you read it. Load the page again.");
  await post(`/v1/releases/${release}/waivers`, { envelope: await sign(asked), reason });
}

async function decidePlan(form, decision) {
  const { study, digest } = form.dataset;
  const asked = await post(`/v1/studies/${study}/passkey-challenge`, { decision });
  const approval = JSON.parse(new TextDecoder().decode(decode(asked.payload)));
  if (approval.plan_digest !== digest || approval.study !== study || approval.decision !== decision)
    throw new Refused("The plan changed while you read it. Load the page again.");
  // Kept as it is sent, so in canonical JSON: the names in order.
  const signed = Object.fromEntries(Object.entries(await sign(asked)).sort());
  await post(`/v1/studies/${study}/approvals`, signed);
}

async function sign(asked) {
  const given = await navigator.credentials.get({
    publicKey: {
      ...asked.options,
      challenge: decode(asked.options.challenge),
      allowCredentials: named(asked.options.allowCredentials),
    },
  });
  return {
    kind: "passkey",
    credential: given.id,
    payload_type: asked.payload_type,
    payload: asked.payload,
    authenticator_data: encode(given.response.authenticatorData),
    client_data: encode(given.response.clientDataJSON),
    signature: encode(given.response.signature),
  };
}

async function run(work) {
  const message = document.getElementById("message");
  message.textContent = "Follow what your authenticator asks for.";
  try {
    await work();
    location.reload();
  } catch (error) {
    // A browser's own refusals say nothing that helps a person, and may quote what the page sent.
    message.textContent = error instanceof Refused ? error.message : "Your authenticator gave no signature. Try again.";
  }
}

document.getElementById("register")?.addEventListener("click", () => run(registerPasskey));
for (const button of document.querySelectorAll("button.revoke"))
  button.addEventListener("click", () =>
    run(() => post("/v1/passkeys/revoke", { credential: button.dataset.credential })),
  );
document.getElementById("decide")?.addEventListener("submit", (event) => {
  event.preventDefault();
  run(() => decide(event.target, event.submitter.value));
});
document.getElementById("decide-plan")?.addEventListener("submit", (event) => {
  event.preventDefault();
  run(() => decidePlan(event.target, event.submitter.value));
});
document.getElementById("waive")?.addEventListener("submit", (event) => {
  event.preventDefault();
  run(() => waive(event.target));
});
