//! A second version of the contract beside the first: a change of the bundle alone, with other claim names and
//! another rounding. No code knows of it.

use std::fs;

use serde_json::{Value, json};
use toml_edit::{Array, DocumentMut, Item, Table, value};

use crate::harness::{Quote, Site, pointers, reason};
use quotesign::proto::{ReloadPolicyRequest, SignQuoteRequest, VerificationOutcome, VerifyQuoteRequest};

/// Part, claim of the first version, claim of the second.
const CLAIMS: [(&str, &str, &str); 15] = [
    ("partner", "partner_id", "seller"),
    ("subscription", "subscription_id", "customer"),
    ("quote_id", "quote_id", "offer"),
    ("sequence", "quote_sequence", "number"),
    ("corridor", "corridor", "route"),
    ("issued_at", "issued_at", "from"),
    ("expires_at", "expires_at", "until"),
    ("send_amount", "send_amount", "pays"),
    ("send_currency", "send_currency", "pays_in"),
    ("receive_amount", "receive_amount", "gets"),
    ("receive_currency", "receive_currency", "gets_in"),
    ("rate", "fx_rate", "rate"),
    ("partner_fee", "partner_fee", "fee"),
    ("principal_fee", "principal_fee", "levy"),
    ("total", "total_customer_cost", "sum"),
];
const RULE: &str = r#"
@id("pricing-signs-offers")
@reason("The second version of the contract, on the same corridor.")
permit (principal in Role::"pricing", action == Action::"SignQuote", resource == Partner::"acme-remit")
when { context.contract == "offer-v2" && context.corridor == "GB-IN" };
"#;

/// The second version's name for a claim of the first.
fn renamed(claim: &str) -> &str {
    match claim {
        "quote_signature_v1" => "contract",
        _ => CLAIMS.iter().find(|(_, old, _)| *old == claim).unwrap().2,
    }
}

/// A site whose first partner may use both versions, and whose second partner only the first.
fn site() -> Site {
    let site = Site::new();
    let schema = fs::read(site.path("policy/schemas/quote-v1.schema.json")).unwrap();
    let mut schema: Value = serde_json::from_slice(&schema).unwrap();
    let old = schema["properties"].as_object().unwrap().clone();
    schema["properties"] = old.into_iter().map(|(name, rule)| (renamed(&name).to_owned(), rule)).collect();
    schema["properties"]["contract"] = json!({"const": "offer/2"});
    for name in schema["required"].as_array_mut().unwrap() {
        *name = renamed(name.as_str().unwrap()).into();
    }
    schema["$id"] = "urn:quotesign:offer-v2".into();
    fs::write(site.path("policy/schemas/offer-v2.schema.json"), schema.to_string()).unwrap();
    let rules = site.path("policy/authorize.cedar");
    fs::write(&rules, fs::read_to_string(&rules).unwrap() + RULE).unwrap();
    site.edit_policy(|policy| {
        let mut other = policy["partners"].as_array_of_tables().unwrap().get(0).unwrap().clone();
        other["id"] = value("other-remit");
        let partners = policy["partners"].as_array_of_tables_mut().unwrap();
        partners.push(other);
        partners.get_mut(0).unwrap()["contracts"] = value(Array::from_iter(["quote-v1", "offer-v2"]));
        policy["contracts"].as_array_of_tables_mut().unwrap().push(second_version());
    });
    site
}

fn second_version() -> Table {
    let text = r#"
        name = "offer-v2"
        version = { claim = "contract", value = "offer/2" }
        schema = "schemas/offer-v2.schema.json"
        money = { fees_in = "send", total = "send + partner_fee + principal_fee", receive_rounding = "down" }
    "#;
    let mut contract = text.parse::<DocumentMut>().unwrap().as_table().clone();
    let mut claims = Table::new();
    for (part, _, claim) in CLAIMS {
        claims[part] = value(claim);
    }
    contract["claims"] = Item::Table(claims);
    contract
}

/// What the first version says, in the words of the second.
fn offer(quote: Quote) -> Quote {
    let members = quote.0.as_object().unwrap().clone();
    let members = members.into_iter().map(|(claim, value)| (renamed(&claim).to_owned(), value));
    Quote(members.collect()).with("contract", json!("offer/2"))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_are_signed_side_by_side_and_each_is_held_against_its_own() {
    let site = site();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let first = pricing.sign(&Quote::number(1)).await.unwrap();
    let second = pricing.sign(&offer(Quote::number(2))).await.unwrap();
    assert_eq!((first.sequence, second.sequence), (1, 2), "they share the partner's sequence");

    // 0.03 at 0.5 is a tie: half to even gives 0.02, down gives 0.01.
    let tie = |number, receive: &str| {
        let quote = Quote::number(number).with("send_amount", json!("0.03")).with("fx_rate", json!("0.5"));
        quote.with("receive_amount", json!(receive)).with("total_customer_cost", json!("2.02"))
    };
    pricing.sign(&tie(3, "0.02")).await.unwrap();
    pricing.sign(&offer(tie(4, "0.01"))).await.unwrap();
    let down = pricing.sign(&tie(5, "0.01")).await.unwrap_err();
    assert_eq!(pointers(&down), ["/receive_amount"]);
    let even = pricing.sign(&offer(tie(5, "0.02"))).await.unwrap_err();
    assert_eq!(pointers(&even), ["/gets"]);

    // The other version's claims are not this one's.
    let mixed = offer(Quote::number(5)).without("pays").with("send_amount", json!("250.00"));
    let mixed = pricing.sign(&mixed).await.unwrap_err();
    let mut told = pointers(&mixed);
    told.sort();
    assert_eq!((reason(&mixed), told), ("SCHEMA_VIOLATION".to_owned(), vec![String::new(), "/pays".to_owned()]));
    let both = pricing.sign(&offer(Quote::number(5)).with("quote_signature_v1", json!("v1"))).await.unwrap_err();
    assert_eq!(reason(&both), "SCHEMA_VIOLATION", "a quote has one version");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partner_without_the_version_is_refused_at_the_version_claim() {
    let site = site();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let theirs = offer(Quote::number(1)).with("seller", json!("other-remit"));
    let refused = pricing.sign(&theirs).await.unwrap_err();
    assert_eq!((reason(&refused), pointers(&refused)), ("SCHEMA_VIOLATION".to_owned(), vec!["/contract".to_owned()]));
    // The version is all that was wrong: with the first one the quote keeps its contract, and policy denies it.
    let denied = pricing.sign(&Quote::number(1).with("partner_id", json!("other-remit"))).await.unwrap_err();
    assert_eq!(reason(&denied), "POLICY_DENIED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contract_can_name_the_currencies_of_its_corridors() {
    let site = Site::new();
    site.edit_policy(|policy| {
        // Every corridor that the rules name must be one then.
        for (corridor, receive) in [("GB-IN", "USD"), ("GB-NG", "NGN")] {
            let pair: Array = ["GBP", receive].into_iter().collect();
            policy["contracts"][0]["money"]["corridors"][corridor] = value(pair);
        }
    });
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let other_money = pricing.sign(&Quote::number(1)).await.unwrap_err();
    assert_eq!(
        (reason(&other_money), pointers(&other_money)),
        ("SCHEMA_VIOLATION".to_owned(), vec!["/receive_currency".to_owned()])
    );
    let other_place = pricing.sign(&Quote::number(1).with("corridor", json!("GB-PK"))).await.unwrap_err();
    assert_eq!(
        (reason(&other_place), pointers(&other_place)),
        ("SCHEMA_VIOLATION".to_owned(), vec!["/corridor".to_owned()])
    );
    site.edit_policy(|policy| {
        let pair: Array = ["GBP", "INR"].into_iter().collect();
        policy["contracts"][0]["money"]["corridors"]["GB-IN"] = value(pair);
    });
    gateway.admin("operator").await.reload_policy(ReloadPolicyRequest {}).await.unwrap();
    assert_eq!(pricing.sign(&Quote::number(1)).await.unwrap().sequence, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contract_without_a_claim_for_the_id_takes_it_from_the_request_and_verifies() {
    let site = site();
    site.edit_policy(|policy| {
        let contract = policy["contracts"].as_array_of_tables_mut().unwrap().get_mut(1).unwrap();
        contract["claims"].as_table_mut().unwrap().remove("quote_id");
    });
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let request = SignQuoteRequest {
        environment: "development".to_owned(),
        payload: offer(Quote::number(1)).bytes(),
        quote_id: "offer-1".to_owned(),
        ..Default::default()
    };
    let signed = pricing.0.clone().sign_quote(request).await.unwrap().into_inner();
    let ask = |partner: &str, jws: &str| VerifyQuoteRequest { partner: partner.to_owned(), jws: jws.to_owned() };
    let verified = pricing.0.clone().verify_quote(ask("acme-remit", &signed.jws)).await.unwrap().into_inner();
    assert!(verified.valid, "{verified:?}");
    let sequence = verified.steps.iter().find(|step| step.name == "check_quote_sequence").unwrap();
    assert_eq!(sequence.outcome(), VerificationOutcome::Passed);
}
