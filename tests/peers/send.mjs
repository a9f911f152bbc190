// Signs webhooks with the providers' own libraries and posts them, as the providers would.
//
// One job a line on standard input, one answer a line on standard output, both JSON. `sign` and `send` are base64: what
// the signature is made over and what is sent, which differ where a test changes a body on its way.

import { createInterface } from "node:readline";

const providers = {
  async github(job, body) {
    const { sign } = await import("@octokit/webhooks-methods");
    return { "X-Hub-Signature-256": await sign(job.secret, body.toString()) };
  },
  async stripe(job, body) {
    const { default: Stripe } = await import("stripe");
    const { webhooks } = new Stripe("sk_test_unused");
    const payload = body.toString();
    return {
      "Stripe-Signature": webhooks.generateTestHeaderString({ payload, secret: job.secret, timestamp: job.time }),
    };
  },
  async shopify(job, body) {
    // What the library's own validation computes.
    await import("@shopify/shopify-api/adapters/node");
    const { createSHA256HMAC } = await import("@shopify/shopify-api/runtime");
    return { "X-Shopify-Hmac-Sha256": await createSHA256HMAC(job.secret, body.toString()) };
  },
  async "standard-webhooks"(job, body) {
    const { Webhook } = await import("standardwebhooks");
    const signature = new Webhook(job.secret).sign(job.id, new Date(job.time * 1000), body);
    return { "webhook-id": job.id, "webhook-timestamp": String(job.time), "webhook-signature": signature };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const job = JSON.parse(line);
  const proof = await providers[job.provider](job, Buffer.from(job.sign, "base64"));
  const headers = { ...job.headers, ...proof };
  const answer = await fetch(job.url, { method: "POST", headers, body: Buffer.from(job.send, "base64") });
  console.log(JSON.stringify({ status: answer.status, body: await answer.text() }));
}
