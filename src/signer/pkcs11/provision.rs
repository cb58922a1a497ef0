//! What commands ask of a token: each starts a host process of its own for it, and ends it again. The gateway
//! generates no keys.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use secrecy::SecretString;

use super::{
    TokenConfig,
    fault::Fault,
    link::Link,
    logins::Logins,
    wire::{
        self, Attributes as WireAttributes, Generate, InitToken, Nothing, Open, Reached, Request, Response, TriedKey,
        TryOut,
    },
};
use crate::{
    domain::Kid,
    jwk::PublicKey,
    signer::{
        Attributes,
        provision::{Examination, Examined, Listed, NewKey, Provision, ProvisionError, Provisioned},
    },
};

/// Making a key may take an HSM a while.
const PATIENCE: Duration = Duration::from_mins(2);
const LEAVE: Duration = Duration::from_secs(2);

/// A token as commands see it.
pub struct Provisioner {
    config: TokenConfig,
}

impl Provisioner {
    /// The token of this config; nothing is started yet.
    #[must_use]
    pub fn new(config: TokenConfig) -> Self {
        Self { config }
    }

    async fn ask(&self, request: Request) -> Result<Response, ProvisionError> {
        let link = Link::start(&self.config, Arc::new(Logins::default()))?;
        let answer = tokio::select! {
            answer = self.open_and_ask(&link, request) => answer,
            fault = link.listen() => Err(fault),
        };
        link.close(LEAVE).await;
        Ok(answer?)
    }

    async fn open_and_ask(&self, link: &Link, request: Request) -> Result<Response, Fault> {
        let pin = self.config.pin.read()?;
        link.ask(self.open(), &[], PATIENCE).await??;
        link.ask(Request::Login(Nothing {}), &[&pin], PATIENCE).await??;
        link.ask(request, &[], PATIENCE).await?
    }

    fn open(&self) -> Request {
        Request::Open(Open {
            module: self.config.module.display().to_string(),
            token_label: self.config.token_label.clone(),
            token_serial: self.config.token_serial.clone(),
            sessions: 0,
        })
    }

    /// Finds the token, logs in once, and looks at the keys. What was come to stands in `seen` when the process fails.
    async fn look(&self, link: &Link, locators: &[String], seen: &mut Examination) -> Result<(), Fault> {
        let Response::Reached(reached) = link.ask(self.open(), &[], PATIENCE).await?? else {
            return Err(Fault::Device(OUT_OF_TURN.to_owned()));
        };
        let Reached { token, mechanisms, pin: warning } = reached;
        seen.reached = Ok(format!("{}, {}", token.trim(), mechanisms.join(" and ")));
        if let Some(why) = warning {
            seen.entered = Err(ProvisionError::Pin(format!("{why}; it was not tried")));
            return Ok(());
        }
        let entered = match self.config.pin.read() {
            Ok(pin) => link.ask(Request::Login(Nothing {}), &[&pin], PATIENCE).await?,
            Err(fault) => Err(fault),
        };
        if let Err(fault) = entered {
            seen.entered = Err(fault.into());
            return Ok(());
        }
        seen.entered = Ok("one log-in, which succeeded".to_owned());
        for locator in locators {
            let asked = link.ask(Request::Examine(locator.clone()), &[], PATIENCE).await?;
            seen.keys.push(match asked {
                Ok(Response::Examined(key)) => Ok(examined(key)),
                Ok(_) => Err(out_of_turn()),
                Err(fault) => Err(fault.into()),
            });
        }
        Ok(())
    }

    async fn key(&self, request: Request, kid: &Kid) -> Result<Provisioned, ProvisionError> {
        match self.ask(request).await? {
            Response::Key(TriedKey { modulus, exponent, locator }) => {
                let public = PublicKey::new(kid.clone(), &modulus, &exponent);
                let public = public.map_err(|fault| ProvisionError::Unfit(fault.to_string()))?;
                Ok(Provisioned { public, locator, existed: false })
            }
            _ => Err(out_of_turn()),
        }
    }
}

#[async_trait]
impl Provision for Provisioner {
    async fn generate(&self, key: &NewKey) -> Result<Provisioned, ProvisionError> {
        let ask = Generate { kid: key.kid.to_string(), bits: key.bits };
        self.key(Request::Generate(ask), &key.kid).await
    }

    async fn list(&self) -> Result<Vec<Listed>, ProvisionError> {
        match self.ask(Request::List(Nothing {})).await? {
            Response::Keys(keys) => Ok(keys.keys.into_iter().map(listed).collect()),
            _ => Err(out_of_turn()),
        }
    }

    async fn try_out(&self, kid: &Kid, locator: &str, attributes: Attributes) -> Result<Provisioned, ProvisionError> {
        let attributes = i32::from(WireAttributes::from(attributes));
        let ask = TryOut { kid: kid.to_string(), locator: locator.to_owned(), attributes };
        Ok(Provisioned { existed: true, ..self.key(Request::TryOut(ask), kid).await? })
    }

    async fn examine(&self, locators: &[String]) -> Examination {
        let not_come_to = || Err(ProvisionError::Device("it was not come to".to_owned()));
        let mut seen = Examination { reached: not_come_to(), entered: not_come_to(), keys: Vec::new() };
        let link = match Link::start(&self.config, Arc::new(Logins::default())) {
            Ok(link) => link,
            Err(fault) => return Examination { reached: Err(fault.into()), ..seen },
        };
        let ended = tokio::select! {
            ended = self.look(&link, locators, &mut seen) => ended,
            fault = link.listen() => Err(fault),
        };
        link.close(LEAVE).await;
        // A process that ended is told of where it was.
        if let Err(fault) = ended {
            match (&seen.reached, &seen.entered) {
                (Err(_), _) => seen.reached = Err(fault.into()),
                (Ok(_), Err(_)) => seen.entered = Err(fault.into()),
                (Ok(_), Ok(_)) => seen.keys.push(Err(fault.into())),
            }
        }
        seen
    }
}

fn examined(key: wire::ExaminedKey) -> Examined {
    let wire::ExaminedKey { modulus, exponent, lacks, remarks, mechanism, fault } = key;
    Examined { public: Ok((modulus, exponent)), lacks, remarks, signs: mechanism.ok_or(fault) }
}

/// Initialises the module's first free slot with a token of the config's label, and sets its user PIN; for
/// development.
///
/// # Errors
/// Says what the module refused; a label that a token has already is.
pub async fn init_token(config: &TokenConfig, so_pin: &SecretString) -> Result<(), ProvisionError> {
    let link = Link::start(config, Arc::new(Logins::default()))?;
    let ask = InitToken { module: config.module.display().to_string(), label: config.token_label.clone() };
    let done = async {
        let pin = config.pin.read()?;
        link.ask(Request::InitToken(ask), &[&pin, so_pin], PATIENCE).await?
    };
    let done = done.await;
    link.close(LEAVE).await;
    done?;
    Ok(())
}

fn listed(key: wire::ListedKey) -> Listed {
    // Of a key that this gateway cannot work with, name and place are told all the same.
    let name = "listed".parse::<Kid>().ok();
    let public = name.and_then(|kid| PublicKey::new(kid, &key.modulus, &key.exponent).ok());
    Listed {
        name: key.name,
        locator: key.locator,
        bits: public.as_ref().and_then(|public| u32::try_from(public.bits()).ok()),
        thumbprint: public.as_ref().map(PublicKey::thumbprint),
        unfit: key.unfit,
    }
}

const OUT_OF_TURN: &str = "the host process answered out of turn";

fn out_of_turn() -> ProvisionError {
    ProvisionError::Device(OUT_OF_TURN.to_owned())
}
