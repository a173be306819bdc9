#!/usr/bin/env bash
# The published alert rules under Prometheus' own promtool: they are good, and they fire when they should.
# Part: promtool, of Debian's package prometheus (installed when missing and run as root).
. "$(dirname "$0")/lib.sh"
need promtool prometheus

check "promtool reads the rules" promtool check rules "$root/deploy/prometheus/phiward-alerts.yaml"
cp "$root/deploy/prometheus/phiward-alerts.yaml" "$work/rules.yaml"
cat >"$work/test.yaml" <<'YAML'
rule_files: [rules.yaml]
evaluation_interval: 1m
tests:
  - name: a sidecar that is well wakes nobody
    interval: 1m
    input_series:
      - {series: 'phiward_audit_healthy{instance="a", job="p"}', values: '1x60'}
      - {series: 'phiward_audit_free_bytes{instance="a", job="p"}', values: '1e9x60'}
      - {series: 'phiward_audit_spool_bytes{instance="a", job="p"}', values: '1e6x60'}
      - {series: 'phiward_audit_sink_lag_seconds{instance="a", job="p", sink="otel"}', values: '0x60'}
      - {series: 'phiward_audit_sink_quarantined_events_total{instance="a", job="p", sink="otel"}', values: '0x60'}
      - {series: 'phiward_svid_expiry_timestamp_seconds{instance="a", job="p"}', values: '86400x60'}
    alert_rule_test:
      - {alertname: PhiwardAuditUnavailable, eval_time: 30m, exp_alerts: []}
      - {alertname: PhiwardSinkLag, eval_time: 30m, exp_alerts: []}
      - {alertname: PhiwardSinkQuarantine, eval_time: 30m, exp_alerts: []}
      - {alertname: PhiwardSpoolFilling, eval_time: 30m, exp_alerts: []}
      - {alertname: PhiwardSvidNotRenewed, eval_time: 30m, exp_alerts: []}
  - name: a sink that is down, a spool that fills, a refusal, an SVID that ends
    interval: 1m
    input_series:
      - {series: 'phiward_audit_free_bytes{instance="a", job="p"}', values: '1e8x60'}
      - {series: 'phiward_audit_spool_bytes{instance="a", job="p"}', values: '9e8x60'}
      - {series: 'phiward_audit_sink_lag_seconds{instance="a", job="p", sink="otel"}', values: '0+60x60'}
      - {series: 'phiward_audit_sink_quarantined_events_total{instance="a", job="p", sink="otel"}', values: '0x25 41x34'}
      - {series: 'phiward_svid_expiry_timestamp_seconds{instance="a", job="p"}', values: '2400x60'}
    promql_expr_test:
      - expr: count by (alertname) (ALERTS{alertstate="firing"})
        eval_time: 30m
        exp_samples:
          - {labels: '{alertname="PhiwardSpoolFilling"}', value: 1}
          - {labels: '{alertname="PhiwardSinkLag"}', value: 1}
          - {labels: '{alertname="PhiwardSinkQuarantine"}', value: 1}
          - {labels: '{alertname="PhiwardSvidNotRenewed"}', value: 1}
YAML
check "the alerts fire when they should, and else do not" promtool test rules "$work/test.yaml"
