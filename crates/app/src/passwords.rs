//! Password hashes: Argon2id, sealed beside the log.

use crate::crypto::Sealer;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use engine::Env;
use kernel::id::{TenantId, UserId};
use kernel::{Kind, Rejection};

/// Shortest password.
pub(crate) const PASSWORD_CHARS_MIN: usize = 8;
/// Longest password: more only costs hashing time.
pub(crate) const PASSWORD_CHARS_MAX: usize = 256;

fn argon2() -> Argon2<'static> {
    // 19 MiB, 2 passes, 1 lane: the first recommendation of the OWASP password storage cheat sheet.
    let params = Params::new(19 * 1024, 2, 1, None).unwrap_or(Params::DEFAULT);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// The hash of a password, in PHC form. Slow on purpose.
pub(crate) fn hash(password: &str, salt: &[u8; 16]) -> Result<String, String> {
    argon2().hash_password_with_salt(password.as_bytes(), salt).map(|h| h.to_string()).map_err(|e| e.to_string())
}

/// Whether a password has this hash. Slow on purpose, also for a hash that makes no sense.
pub(crate) fn verify(password: &str, hash: &str) -> bool {
    PasswordHash::new(hash).is_ok_and(|parsed| argon2().verify_password(password.as_bytes(), &parsed).is_ok())
}

/// The password policy.
pub(crate) fn check(password: &str, username: &str, chars_min: usize) -> Result<(), Rejection> {
    let count = password.chars().count();
    if !(chars_min..=PASSWORD_CHARS_MAX).contains(&count) {
        Err(refused(&format!("It must have {chars_min} to {PASSWORD_CHARS_MAX} characters.")))
    } else if password.eq_ignore_ascii_case(username) {
        Err(refused("It must not be the user name."))
    } else {
        Ok(())
    }
}

/// The answer to a password that is not accepted.
pub(crate) fn refused(problem: &str) -> Rejection {
    Rejection::new(
        Kind::Refused,
        "PASSWORD_REFUSED",
        format!("The password is not accepted. {problem}"),
        "Choose another one; a sentence is good.",
    )
}

/// Hashes and seals a password for its place in the store: name and sealed bytes.
pub(crate) fn set_password_hash(
    sealer: &Sealer,
    env: &Env,
    tenant: TenantId,
    user: UserId,
    password: &str,
) -> Result<(String, Vec<u8>), String> {
    let name = domain::identity::user::password_secret(&user);
    let sealed = sealer.seal(tenant, &name, hash(password, &env.bytes())?.as_bytes(), env.bytes())?;
    Ok((name, sealed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_has_its_own_hash_only() {
        let one = hash("correct horse", &[1; 16]).unwrap();
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(verify("correct horse", &one));
        assert!(!verify("correct horsf", &one));
        assert!(!verify("correct horse", "nonsense"));
        assert_ne!(one, hash("correct horse", &[2; 16]).unwrap());
    }

    #[test]
    fn short_passwords_and_the_user_name_are_refused() {
        assert!(check("long enough", "ada", 8).is_ok());
        assert!(check("long enough", "ada", 12).is_err());
        for bad in ["short", "", "adalovelace", &"x".repeat(257)] {
            assert!(check(bad, "AdaLovelace", 8).is_err(), "{bad}");
        }
    }
}
