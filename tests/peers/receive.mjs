// Stands behind the gateway and verifies every delivery again with the providers' own libraries.
//
// The argument is a JSON object from provider to secret; /PROVIDER answers 200 to what its library accepts and 400 to
// what it refuses. The port it listens on is the first line of standard output.

import assert from "node:assert";
import { createServer } from "node:http";

const secrets = JSON.parse(process.argv.at(-1));

const providers = {
  async github(secret, { headers }, body) {
    const { verify } = await import("@octokit/webhooks-methods");
    assert(await verify(secret, body.toString(), headers["x-hub-signature-256"]), "verify says no");
  },
  async stripe(secret, { headers }, body) {
    const { default: Stripe } = await import("stripe");
    const { webhooks } = new Stripe("sk_test_unused");
    assert.equal(webhooks.constructEvent(body, headers["stripe-signature"], secret).object, "event");
  },
  async slack(signingSecret, { headers }, body) {
    const { verifySlackRequest } = await import("@slack/bolt");
    verifySlackRequest({ signingSecret, headers, body: body.toString() });
  },
  async shopify(secret, request, body, response) {
    await import("@shopify/shopify-api/adapters/node");
    const { ApiVersion, shopifyApi } = await import("@shopify/shopify-api");
    const shopify = shopifyApi({
      apiKey: "unused",
      apiSecretKey: secret,
      apiVersion: ApiVersion.July26,
      hostName: "app.example.com",
      isEmbeddedApp: false,
      logger: { log: () => {} },
    });
    const rawBody = body.toString();
    const said = await shopify.webhooks.validate({ rawBody, rawRequest: request, rawResponse: response });
    assert(said.valid, JSON.stringify(said));
  },
  async "standard-webhooks"(secret, { headers }, body) {
    const { Webhook } = await import("standardwebhooks");
    new Webhook(secret).verify(body, headers, { jsonParse: false });
  },
  async discord(publicKey, { headers }, body) {
    const { verifyKey } = await import("discord-interactions");
    const signed = [headers["x-signature-ed25519"], headers["x-signature-timestamp"]];
    assert(await verifyKey(body, ...signed, publicKey), "verifyKey says no");
  },
};

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const provider = request.url.slice(1);
  try {
    await providers[provider](secrets[provider], request, Buffer.concat(chunks), response);
    response.writeHead(200).end(`verified by ${provider} (node)`);
  } catch (refused) {
    response.writeHead(400).end(`refused by ${provider} (node): ${refused}`);
  }
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
