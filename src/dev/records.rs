//! A small FHIR-like records service with synthetic patients: the app of `phiward dev`.
//!
//! Plain HTTP on loopback; it knows nothing of phiward but the header that tells who called. Nobody in it exists.

use axum::extract::{Path, Query};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// (id, family, given, birth date)
const PATIENTS: [(&str, &str, &str, &str); 4] = [
    ("1", "Testperson", "Ada", "1950-12-10"),
    ("2", "Testperson", "Grace", "1961-12-09"),
    ("3", "Example", "Alan", "1972-06-23"),
    ("4", "Example", "Edsger", "1983-05-11"),
];

#[derive(serde::Deserialize)]
struct Search {
    patient: Option<String>,
}

/// Serves until the task is dropped.
pub(super) async fn serve(listener: TcpListener) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/fhir/metadata", get(metadata))
        .route("/fhir/Patient", get(patients))
        .route("/fhir/Patient/{id}", get(patient))
        .route("/fhir/Observation", get(observations).post(new_observation));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the records service stopped");
    }
}

async fn metadata() -> Response {
    fhir(
        StatusCode::OK,
        &json!({"resourceType": "CapabilityStatement", "status": "active", "fhirVersion": "4.0.1"}),
    )
}

async fn patients() -> Response {
    fhir(StatusCode::OK, &bundle(PATIENTS.iter().map(patient_resource).collect()))
}

async fn patient(Path(id): Path<String>, headers: HeaderMap) -> Response {
    let Some(found) = PATIENTS.iter().find(|p| p.0 == id) else {
        return fhir(StatusCode::NOT_FOUND, &json!({"resourceType": "OperationOutcome"}));
    };
    let mut resource = patient_resource(found);
    // An app sees who called: phiward sets this header and strips every copy a caller sends.
    if let Some(caller) = headers.get("x-forwarded-client-cert").and_then(|v| v.to_str().ok()) {
        let uri = caller.split(';').find_map(|part| part.strip_prefix("URI=")).unwrap_or_default();
        resource["meta"] = json!({"tag": [{"system": "urn:caller", "code": uri}]});
    }
    fhir(StatusCode::OK, &resource)
}

async fn observations(Query(search): Query<Search>) -> Response {
    let of = |id: &str| search.patient.as_deref().is_none_or(|wanted| wanted == id);
    let found = PATIENTS.iter().filter(|p| of(p.0)).map(|p| {
        json!({
            "resourceType": "Observation",
            "id": format!("pulse-{}", p.0),
            "status": "final",
            "subject": {"reference": format!("Patient/{}", p.0)},
            "valueQuantity": {"value": 60 + p.0.len(), "unit": "/min"},
        })
    });
    fhir(StatusCode::OK, &bundle(found.collect()))
}

async fn new_observation(body: axum::body::Bytes) -> Response {
    match serde_json::from_slice::<Value>(&body) {
        Ok(resource) if resource["resourceType"] == "Observation" => fhir(StatusCode::CREATED, &resource),
        _ => fhir(StatusCode::BAD_REQUEST, &json!({"resourceType": "OperationOutcome"})),
    }
}

fn patient_resource((id, family, given, born): &(&str, &str, &str, &str)) -> Value {
    json!({
        "resourceType": "Patient",
        "id": id,
        "name": [{"family": family, "given": [given]}],
        "birthDate": born,
    })
}

fn bundle(resources: Vec<Value>) -> Value {
    let entries: Vec<Value> = resources.into_iter().map(|resource| json!({"resource": resource})).collect();
    json!({"resourceType": "Bundle", "type": "searchset", "total": entries.len(), "entry": entries})
}

fn fhir(status: StatusCode, resource: &Value) -> Response {
    let mut response = (status, Json(resource)).into_response();
    let fhir_json = axum::http::HeaderValue::from_static("application/fhir+json");
    response.headers_mut().insert(header::CONTENT_TYPE, fhir_json);
    response
}
