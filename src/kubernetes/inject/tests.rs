use super::*;
use crate::config::IdentityVolume;
use crate::identity::TrustDomain;

fn injection() -> Injection {
    Injection {
        image: "phiward:0.1.0".into(),
        trust_domain: TrustDomain::parse("hospital.local").unwrap(),
        identity: IdentityVolume::Spire,
        policy: "phiward-policy".into(),
        audit_key: "phiward-audit-key".into(),
        sinks: json!([]),
        cpu: "50m".into(),
        memory: "64Mi".into(),
    }
}

fn pod(annotations: Value) -> Value {
    json!({
        "metadata": {"generateName": "records-7d4b-", "labels": {"app": "records"}, "annotations": annotations},
        "spec": {
            "initContainers": [{"name": "migrate", "image": "m"}],
            "containers": [{
                "name": "app", "image": "a", "ports": [{"name": "web", "containerPort": 8080}, {"containerPort": 9000, "protocol": "UDP"}],
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": "web"}},
            }],
        },
    })
}

fn injected(annotations: Value) -> Value {
    let mut pod = pod(annotations);
    assert_eq!(inject(&mut pod, "clinic", &injection()), Ok(Outcome::Injected));
    pod
}

fn refused(pod: &Value) -> String {
    let mut changed = pod.clone();
    let refusal = inject(&mut changed, "clinic", &injection()).unwrap_err();
    assert_eq!(&changed, pod, "a refused pod stays as it is");
    refusal.to_string()
}

fn config_of(pod: &Value) -> Value {
    serde_json::from_str(pod["metadata"]["annotations"][CONFIG].as_str().unwrap()).unwrap()
}

/// If this fails, a pod comes up without its guard, or never comes up.
#[test]
fn a_pod_gets_its_sidecar_first_and_its_own_parts_stay() {
    let pod = injected(json!({}));
    let names: Vec<&str> = pod["spec"]["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["phiward", "phiward-capture", "migrate"]);
    let sidecar = &pod["spec"]["initContainers"][0];
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["lifecycle"]["preStop"]["exec"]["command"], json!(["/phiward", "k8s", "leave"]));
    assert_eq!(sidecar["securityContext"]["runAsUser"], 15099);
    assert_eq!(sidecar["startupProbe"]["httpGet"]["port"], 15008);
    let args = pod["spec"]["initContainers"][1]["args"].to_string();
    assert!(
        args.contains("--inbound=8080:15006")
            && args.contains("--outbound=15001")
            && args.contains("--open-ports=15008,15009"),
        "{args}"
    );
    let probe = &pod["spec"]["containers"][0]["readinessProbe"]["httpGet"];
    assert_eq!((&probe["port"], &probe["path"]), (&json!(15008), &json!("/healthz")));
    let config = config_of(&pod);
    assert_eq!(config["workload"], json!({"service": "records", "namespace": "clinic"}));
    assert_eq!(config["inbound"]["probes"]["paths"], json!(["/healthz"]));
    assert_eq!(config["inbound"]["probes"]["app"], "127.0.0.1:8080");
    assert_eq!(config["outbound"]["unknown"], "deny");
}

/// If this fails, a Job's app starts before its sidecar listens, or is asked for a policy that it has no use for.
#[test]
fn a_pod_that_nobody_calls_has_probes_and_no_policy() {
    let mut job = pod(json!({}));
    job["spec"]["containers"] = json!([{"name": "export", "image": "e"}]);
    assert_eq!(inject(&mut job, "clinic", &injection()), Ok(Outcome::Injected));
    let config = config_of(&job);
    assert_eq!(config["inbound"], json!({"probes": {"bind": ["0.0.0.0:15008", "[::]:15008"]}}));
    assert_eq!(job["spec"]["initContainers"][0]["startupProbe"]["httpGet"]["port"], 15008);
    assert!(!job.to_string().contains("configMap"), "{job}");
}

/// If this fails, a pod that is seen twice gets two sidecars.
#[test]
fn twice_is_once() {
    let once = injected(json!({}));
    let mut twice = once.clone();
    assert_eq!(inject(&mut twice, "clinic", &injection()), Ok(Outcome::Already));
    assert_eq!(once, twice);
}

/// If this fails, what the API server applies is not what `inject` shows.
#[test]
fn a_patch_makes_the_one_of_the_other() {
    let (before, after) = (pod(json!({"a": "b"})), injected(json!({"a": "b"})));
    let mut patched = before.clone();
    for operation in patch(&before, &after).as_array().unwrap() {
        let (parent, key) = operation["path"].as_str().unwrap().rsplit_once('/').unwrap();
        patched.pointer_mut(parent).unwrap()[key] = operation["value"].clone();
    }
    assert_eq!(patched, after);
    assert_eq!(patch(&after, &after), json!([]));
}

/// If this fails, an annotation is read and does nothing.
#[test]
fn each_annotation_does_what_it_says() {
    let services = json!([{"name": "billing", "hosts": ["billing.clinic"], "endpoints": ["billing.clinic:8080"], "identities": ["spiffe://hospital.local/ns/clinic/sa/billing"]}]);
    let pod = injected(json!({
        "phiward.dev/ports": "8080/h2c, 5432/tcp", "phiward.dev/mode": "permissive", "phiward.dev/unknown": "passthrough",
        "phiward.dev/policy": "mine", "phiward.dev/identity": "secret/own", "phiward.dev/services": services.to_string(), "phiward.dev/exclude-inbound-ports": "9090",
        "phiward.dev/exclude-outbound-ports": "3306", "phiward.dev/exclude-outbound-cidrs": "10.0.0.0/8",
        "phiward.dev/cpu": "1", "phiward.dev/memory": "1Gi",
    }));
    let config = config_of(&pod);
    assert_eq!(config["outbound"]["services"], services);
    assert_eq!(config["outbound"]["unknown"], "passthrough");
    let listeners = config["inbound"]["listeners"].as_array().unwrap();
    assert_eq!((&listeners[0]["app_protocol"], &listeners[0]["mode"]), (&json!("h2c"), &json!("permissive")));
    assert_eq!(
        (&listeners[1]["protocol"], &listeners[1]["bind"][0]),
        (&json!("tcp"), &json!("0.0.0.0:15016"))
    );
    let args = pod["spec"]["initContainers"][1]["args"].to_string();
    for flag in [
        "--inbound=8080:15006,5432:15016",
        "--open-ports=15008,15009,9090",
        "--exclude-outbound-ports=3306",
        "--exclude-outbound-cidrs=10.0.0.0/8",
    ] {
        assert!(args.contains(flag), "{flag} in {args}");
    }
    let text = pod.to_string();
    assert!(
        text.contains("\"configMap\":{\"name\":\"mine\"}")
            && text.contains("\"secretName\":\"own\"")
            && text.contains("\"1Gi\"")
            && text.contains("\"cpu\":\"1\"")
    );
    assert_eq!(config["identity"]["files"]["bundle"], "/run/phiward/identity/bundle.pem");
    let uncaptured = injected(json!({"phiward.dev/capture": "false"}));
    assert!(!uncaptured.to_string().contains("NET_ADMIN"));
    assert_eq!(
        uncaptured["spec"]["containers"],
        injected(json!({}))["spec"]["containers"],
        "its app is on loopback, where only the sidecar can ask it"
    );
    let mut declined = self::pod(json!({"phiward.dev/inject": "false"}));
    assert_eq!(inject(&mut declined, "clinic", &injection()), Ok(Outcome::Declined));
}

/// If this fails, a mistake shows as a pod that does not work instead of as a message.
#[test]
fn what_cannot_be_is_refused_with_what_to_do() {
    let with = |key: &str, value: &str| refused(&pod(json!({format!("phiward.dev/{key}"): value})));
    assert!(with("prots", "1").contains("did you mean phiward.dev/ports?"));
    assert!(with("mode", "lax").contains("`permissive` or `strict`"));
    assert!(with("status", "injected").contains("there is none"));
    assert!(with("identity", "vault").contains("secret/NAME"));
    assert!(with("ports", "http").contains("8080 or 5432/tcp"));
    assert!(with("ports", "15006").contains("the sidecar's own"));
    assert!(with("ports", "80,80").contains("twice"));
    assert!(with("exclude-outbound-cidrs", "10.0.0.1/8").contains("beyond the prefix"));
    assert!(with("services", "[").contains("no JSON"));
    assert!(with("services", r#"[{"name":"a"}]"#).contains("endpoints"));
    let spec = |path: &str, value: Value| {
        let mut pod = pod(json!({}));
        *pod.pointer_mut("/spec").unwrap() = {
            let mut spec = pod["spec"].clone();
            match path {
                "" => spec["hostNetwork"] = value,
                "user" => spec["securityContext"] = json!({"runAsUser": value}),
                "name" => spec["containers"][0]["name"] = value,
                probe => {
                    spec["containers"][0][probe] = value;
                }
            }
            spec
        };
        refused(&pod)
    };
    assert!(spec("", json!(true)).contains("hostNetwork"));
    assert!(spec("user", json!(15099)).contains("15099"));
    assert!(spec("name", json!("phiward")).contains("already"));
    assert!(spec("livenessProbe", json!({"grpc": {"port": 8080}})).contains("use httpGet"));
    assert!(spec("livenessProbe", json!({"tcpSocket": {"port": 8080}})).contains("whatever the app does"));
    assert!(
        spec("livenessProbe", json!({"httpGet": {"port": 8081, "path": "/x"}}))
            .contains("exclude-inbound-ports")
    );
    assert!(spec("livenessProbe", json!({"httpGet": {"port": 8080, "scheme": "HTTPS"}})).contains("HTTPS"));
}
