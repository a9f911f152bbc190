// Are these objects what the Prometheus operator's own schemas ask for?
//
//     node operator.mjs NODE_MODULES < OBJECTS, a JSON array
import { readFileSync } from "node:fs";

const { PrometheusRule, ServiceMonitor } = await import(
  `${process.argv[2]}/@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/index.js`
);
const kinds = { PrometheusRule, ServiceMonitor };
for (const thing of JSON.parse(readFileSync(0, "utf8"))) {
  new kinds[thing.kind](thing).validate();
}
