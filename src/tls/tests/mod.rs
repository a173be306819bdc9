//! Handshakes in memory, between our own two sides and between them and peers that break each rule.

mod mesh;
mod posture;

use std::io;
use std::sync::Arc;

use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose as Eku, IsCa, KeyUsagePurpose};
use rustls::server::ServerSessionMemoryCache;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::TlsAcceptor;

use self::mesh::{Mesh, NoCertificate, handshake, only};
use super::*;
use crate::identity::testing::{Forge, Forged, RECORDS, WEB, at, bundles, domain, id, pem, uri, validity};
use crate::identity::{Bundles, Material, PemSet, material_from_pem};

/// If this fails, the mesh has no connections, or audit events describe them wrongly.
#[tokio::test]
async fn two_workloads_meet_and_know_each_other() {
    let mesh = Mesh::new();
    let (web, records) = (mesh.settings(WEB), mesh.settings(RECORDS));
    let (client, server) = handshake(web.client(only(RECORDS), Alpn::Either), records.server()).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    let seen = peer_cert(server.get_ref().1).unwrap();
    assert_eq!(seen.id.as_str(), WEB);
    assert_eq!(seen.not_after, web.material().svid.not_after());
    assert_eq!(seen.sha256_hex, web.material().svid.leaf_sha256_hex());
    assert_eq!(seen.serial_hex, web.material().svid.serial_hex());
    assert_eq!(peer_cert(client.get_ref().1).unwrap().id.as_str(), RECORDS);
    let connection = server.get_ref().1;
    assert_eq!(connection.protocol_version().map(version_name), Some("1.3"));
    let suite = connection.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(cipher_name(suite), "TLS13_AES_128_GCM_SHA256");
    assert_eq!(connection.server_name(), None, "no SNI is sent");

    server.write_all(b"chart").await.unwrap();
    server.flush().await.unwrap();
    let mut chart = [0; 5];
    client.read_exact(&mut chart).await.unwrap();
    assert_eq!(&chart, b"chart");
    assert_eq!(
        client.get_ref().1.tls13_tickets_received(),
        0,
        "a ticket would skip the chain check next time"
    );
}

/// If this fails, a session is resumed and a peer stays in whose bundle is gone.
#[tokio::test]
async fn every_handshake_is_a_full_one() {
    let mesh = Mesh::new();
    let (client, server) = (mesh.client(), mesh.server());
    assert!(!server.ticketer.enabled() && server.send_tls13_tickets == 0 && server.max_early_data_size == 0);
    for _ in 0..2 {
        let (first, second) = handshake(Arc::clone(&client), Arc::clone(&server)).await;
        let full = Some(rustls::HandshakeKind::Full);
        assert_eq!(first.unwrap().get_ref().1.handshake_kind(), full);
        assert_eq!(second.unwrap().get_ref().1.handshake_kind(), full);
    }
    // A server that is not ours hands out tickets: our client keeps none.
    let mut generous = ServerConfig::clone(&server);
    generous.send_tls13_tickets = 2;
    generous.session_storage = ServerSessionMemoryCache::new(8);
    let generous = Arc::new(generous);
    for _ in 0..2 {
        let (ours, theirs) = handshake(Arc::clone(&client), Arc::clone(&generous)).await;
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        assert_eq!(ours.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        theirs.write_all(b".").await.unwrap();
        theirs.flush().await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), b'.');
        assert_eq!(
            ours.get_ref().1.tls13_tickets_received(),
            2,
            "they came, so the next handshake could use one"
        );
    }
}

/// If this fails, the names of internal services are readable on the wire, whatever name a caller passes.
#[test]
fn no_server_name_is_sent() {
    let name = rustls_pki_types::ServerName::try_from("records.clinic").unwrap();
    let mut client = ClientConnection::new(Mesh::new().client(), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    assert!(!hello.windows(7).any(|window| window == b"records"));
}

/// If this fails, HTTP/2 is not used between sidecars, or a listener gets a protocol that it does not speak.
#[tokio::test]
async fn alpn_prefers_h2_and_obeys_the_listener() {
    let mesh = Mesh::new();
    let (web, records) = (mesh.settings(WEB), mesh.settings(RECORDS));
    let table = [
        (Alpn::Either, Alpn::Either, Ok("h2")),
        (Alpn::H2, Alpn::Either, Ok("h2")),
        (Alpn::Http1, Alpn::Either, Ok("http/1.1")),
        (Alpn::Either, Alpn::Http1, Ok("http/1.1")),
        (Alpn::H2, Alpn::Http1, Err("no_common_protocol")),
    ];
    for (ours, theirs, want) in table {
        let (client, server) =
            handshake(web.client(only(RECORDS), ours), records.server_with_alpn(theirs)).await;
        let got = match &server {
            Ok(stream) => Ok(std::str::from_utf8(stream.get_ref().1.alpn_protocol().unwrap()).unwrap()),
            Err(error) => Err(handshake_code(error)),
        };
        assert_eq!(got, want, "{ours:?} to {theirs:?}");
        assert_eq!(client.is_ok(), want.is_ok());
    }
}

/// If this fails, somebody without an identity gets to the application.
#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let mut config = ClientConfig::clone(&mesh.client());
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let (_, server) = handshake(Arc::new(config), mesh.server()).await;
    assert_eq!(handshake_code(&server.err().unwrap()), "no_certificate");
}

/// If this fails, a certificate that breaks a rule opens a connection, or its audit event names the wrong reason.
#[tokio::test]
async fn a_client_that_breaks_a_rule_is_refused_with_its_reason() {
    let mesh = Mesh::new();
    let now = mesh.now;
    let second = uri("spiffe://hospital.local/ns/clinic/sa/admin");
    assert_eq!(mesh.refused_client(|p| p.subject_alt_names.push(second)).await, "several_uri_sans");
    assert_eq!(mesh.refused_client(|p| p.subject_alt_names = vec![]).await, "no_uri_san");
    let other = uri("spiffe://other.example/web");
    assert_eq!(mesh.refused_client(|p| p.subject_alt_names = vec![other]).await, "unknown_trust_domain");
    let partners = uri("spiffe://partner.example/gateway");
    assert_eq!(mesh.refused_client(|p| p.subject_alt_names = vec![partners]).await, "untrusted_chain");
    assert_eq!(mesh.refused_client(|p| validity(p, now, -7_200, -3_600)).await, "expired");
    assert_eq!(mesh.refused_client(|p| validity(p, now, 3_600, 7_200)).await, "not_yet_valid");
    let ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(mesh.refused_client(|p| p.is_ca = ca).await, "leaf_is_ca");
    assert_eq!(
        mesh.refused_client(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)).await,
        "key_usage_ca_bits"
    );
    assert_eq!(
        mesh.refused_client(|p| p.extended_key_usages = vec![Eku::ServerAuth]).await,
        "extended_key_usage"
    );
}

/// If this fails, our own data goes to a server with a bad certificate.
#[tokio::test]
async fn a_server_that_breaks_a_rule_is_refused_with_its_reason() {
    let mesh = Mesh::new();
    let now = mesh.now;
    assert_eq!(mesh.refused_server(|p| p.subject_alt_names.push(uri(WEB))).await, "several_uri_sans");
    assert_eq!(mesh.refused_server(|p| p.subject_alt_names = vec![]).await, "no_uri_san");
    assert_eq!(mesh.refused_server(|p| validity(p, now, -7_200, -3_600)).await, "expired");
    assert_eq!(
        mesh.refused_server(|p| p.extended_key_usages = vec![Eku::ClientAuth]).await,
        "extended_key_usage"
    );
    assert_eq!(mesh.refused_server(|p| p.subject_alt_names = vec![uri(WEB)]).await, "peer_not_allowed");
}

/// If this fails, a partner's CA can pose as one of our workloads, or a partner with a right SVID cannot connect.
#[tokio::test]
async fn federation_does_not_cross() {
    let mesh = Mesh::new();
    let gateway = mesh.partner.svid("spiffe://partner.example/gateway");
    let (_, server) = handshake(mesh.bad_client(&gateway, &[]), mesh.server()).await;
    assert_eq!(peer_cert(server.unwrap().get_ref().1).unwrap().id.trust_domain(), "partner.example");
    let posing = mesh.partner.svid(WEB);
    let (_, server) = handshake(mesh.bad_client(&posing, &[]), mesh.server()).await;
    let error = server.err().unwrap();
    assert_eq!(handshake_code(&error), "untrusted_chain");
    assert_eq!(
        peer_error(&error).and_then(PeerError::claimed_id),
        Some(&id(WEB)),
        "the event names the claim"
    );
}

/// If this fails, workloads whose issuer is an intermediate CA cannot connect.
#[tokio::test]
async fn intermediates_sent_by_the_peer_are_followed() {
    let mesh = Mesh::new();
    let issuing = mesh.ca.intermediate("Issuing", |_| {});
    let leaf = issuing.leaf(|_| {});
    let (_, server) = handshake(mesh.bad_client(&leaf, &[&issuing]), mesh.server()).await;
    assert!(server.is_ok());
    let (_, server) = handshake(mesh.bad_client(&leaf, &[]), mesh.server()).await;
    assert_eq!(handshake_code(&server.err().unwrap()), "untrusted_chain");
}

/// If this fails, a client with a stolen certificate but without its key gets in.
#[tokio::test]
async fn a_certificate_without_its_key_is_refused() {
    let mesh = Mesh::new();
    let stolen = Forged { key_pem: mesh.ca.svid(WEB).key_pem, ..mesh.ca.svid(WEB) };
    let (_, server) = handshake(mesh.bad_client(&stolen, &[]), mesh.server()).await;
    assert_eq!(handshake_code(&server.err().unwrap()), "key_not_proved");
    let stolen = Forged { key_pem: stolen.key_pem, ..mesh.ca.svid(RECORDS) };
    let (client, _) = handshake(mesh.client(), mesh.bad_server(&stolen)).await;
    assert_eq!(handshake_code(&client.err().unwrap()), "key_not_proved");
}

/// If this fails, our certificate is shown to, or a request is sent to, a server that is not the service asked for.
#[test]
fn a_wrong_server_never_sees_our_certificate() {
    let mesh = Mesh::new();
    let config =
        mesh.settings(WEB).client(only("spiffe://hospital.local/ns/clinic/sa/billing"), Alpn::Either);
    let mut client = ClientConnection::new(config, dummy_server_name()).unwrap();
    let mut server = ServerConnection::new(mesh.server()).unwrap();
    let mut error = None;
    for _ in 0..4 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        while !wire.is_empty() {
            let taken = server.read_tls(&mut wire.as_slice()).unwrap();
            wire.drain(..taken);
            let _ = server.process_new_packets();
        }
        server.write_tls(&mut wire).unwrap();
        while !wire.is_empty() {
            let taken = client.read_tls(&mut wire.as_slice()).unwrap();
            wire.drain(..taken);
            error = error.or(client.process_new_packets().err());
        }
    }
    let error = io::Error::new(io::ErrorKind::InvalidData, error.unwrap());
    assert_eq!(peer_error(&error), Some(&PeerError::NotAllowed { id: id(RECORDS) }));
    assert!(server.peer_certificates().is_none());
    assert!(server.is_handshaking());
}

/// If this fails, a service without configured identities accepts any server.
#[tokio::test]
async fn no_allowed_identity_means_nobody() {
    let mesh = Mesh::new();
    let config = mesh.settings(WEB).client(Arc::new([]), Alpn::Either);
    let (client, _) = handshake(config, mesh.server()).await;
    assert_eq!(handshake_code(&client.err().unwrap()), "peer_not_allowed");
}

/// If this fails, a peer that lost its bundle is still believed.
#[test]
fn no_bundle_means_nobody() {
    let mesh = Mesh::new();
    let svid = mesh.settings(RECORDS).material().svid.clone();
    let settings = |bundles: Bundles| {
        TlsSettings::new(Arc::new(Material { svid: svid.clone(), bundles }), Posture::default()).unwrap()
    };
    let outcome = |server| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (_, server) = runtime.block_on(handshake(mesh.client(), server));
        server.err().map(|error| handshake_code(&error))
    };
    assert_eq!(outcome(settings(Bundles::default()).server()), Some("unknown_trust_domain"));
    let stranger = bundles(vec![("hospital.local", mesh.partner.bundle())]);
    assert_eq!(outcome(settings(stranger).server()), Some("untrusted_chain"));
    assert_eq!(outcome(settings(mesh.ca.bundles()).server()), None);
}

/// A TLS 1.2 ClientHello (RFC 5246 section 7.4.1.2): one AEAD suite, no supported_versions extension.
fn tls12_hello() -> Vec<u8> {
    let mut extensions = Vec::new();
    extensions.extend([0, 10, 0, 4, 0, 2, 0, 29]); // supported_groups: x25519
    extensions.extend([0, 11, 0, 2, 1, 0]); // ec_point_formats: uncompressed
    extensions.extend([0, 13, 0, 4, 0, 2, 4, 3]); // signature_algorithms: ecdsa_secp256r1_sha256
    let mut body = vec![3, 3];
    body.extend([7; 32]); // random
    body.push(0); // no session id
    body.extend([0, 2, 0xc0, 0x2b]); // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    body.extend([1, 0]); // no compression
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut handshake = vec![1, 0];
    handshake.extend((body.len() as u16).to_be_bytes());
    handshake.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend((handshake.len() as u16).to_be_bytes());
    record.extend(handshake);
    record
}

/// If this fails, an old protocol is spoken, or an operator cannot tell why a handshake failed.
#[tokio::test]
async fn what_is_not_tls_13_is_refused_with_its_reason() {
    let mesh = Mesh::new();
    let hello = tls12_hello();
    let table: [(&[u8], &str); 4] = [
        (&hello, "tls_version"),
        (b"GET /fhir/Patient/1 HTTP/1.1\r\nhost: records\r\n\r\n", "not_tls"),
        (&hello[..20], "handshake_aborted"),
        (b"", "handshake_aborted"),
    ];
    for (bytes, want) in table {
        let (mut near, far) = duplex(4096);
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let error = TlsAcceptor::from(mesh.server()).accept(far).await.err().unwrap();
        assert_eq!(handshake_code(&error), want);
        assert!(peer_error(&error).is_none());
    }
    let timeout = io::Error::from(io::ErrorKind::TimedOut);
    assert_eq!(handshake_code(&timeout), "handshake_aborted");
}

/// If this fails, a sidecar whose rotation stopped goes on with an expired identity toward peers that do not look.
#[tokio::test]
async fn our_own_expired_svid_ends_both_sides() {
    let now = UnixTime::now().as_secs();
    let mesh =
        Mesh { now, ca: Forge::root(now, |p| validity(p, now, -9_000, 3_600)), partner: Forge::new(now) };
    let expired = |spiffe_id: &str| {
        let leaf = mesh.ca.leaf(|params| {
            params.subject_alt_names = vec![uri(spiffe_id)];
            validity(params, now, -7_200, -3_600);
        });
        let (certificate, bundle) = (leaf.cert.pem(), mesh.ca.cert.pem());
        let set = PemSet {
            certificate: pem("svid.pem", &certificate),
            private_key: pem("svid.key", &leaf.key_pem),
            bundle: pem("bundle.pem", &bundle).into(),
            federation: vec![],
        };
        let material = material_from_pem(&set, &domain("hospital.local"), at(now - 5_000)).unwrap();
        TlsSettings::new(Arc::new(material), Posture::default()).unwrap()
    };
    let (_, server) = handshake(mesh.client_that_believes_anybody(), expired(RECORDS).server()).await;
    assert_eq!(handshake_code(&server.err().unwrap()), "own_svid_expired");
    let client = expired(WEB).client(only(RECORDS), Alpn::Either);
    let (client, _) = handshake(client, mesh.server()).await;
    assert_eq!(handshake_code(&client.err().unwrap()), "own_svid_expired");
}
