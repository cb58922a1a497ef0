//! Holds `proto/` to buf's rules, and `docs/api.md`, which is made here, to `proto/`.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Output},
};

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use quotesign::proto::DESCRIPTORS;
use tempfile::TempDir;

use crate::{harness::done, stages::repository};

/// As the numbers of `descriptor.proto` have them.
const FILE_MESSAGES: i32 = 4;
const FILE_ENUMS: i32 = 5;
const FILE_SERVICES: i32 = 6;
/// Methods of a service, fields of a message, values of an enum.
const MEMBERS: i32 = 2;

fn buf(folder: &Path, args: &[&str]) -> Output {
    let buf = repository(".tools/buf/node_modules/.bin/buf");
    Command::new(buf).current_dir(folder).args(args).output().unwrap()
}

const BREAKING: [&str; 3] = ["breaking", "--against", "proto/baseline.txtpb"];

#[test]
fn buf_finds_nothing_to_say_about_the_proto() {
    done(buf(&repository(""), &["lint"]));
    done(buf(&repository(""), &BREAKING));
}

/// What buf must refuse, each in a copy of its own.
#[test]
fn buf_refuses_what_would_break_a_client() {
    let quotes = "quotesign/v1/quote_signing.proto";
    let reasons = "quotesign/v1/reason.proto";
    for (file, from, to, expected) in [
        (quotes, "  bool replayed = 6;\n", "", "Previously present field \"6\" with name \"replayed\""),
        (quotes, "string kid = 2;\n  // The quote's number", "bytes kid = 2;\n  // The quote's number", "changed type"),
        (quotes, "bool replayed = 6;", "bool again = 6;", "changed name"),
        (quotes, "rpc GetSequence(", "rpc ReadSequence(", "Previously present RPC \"GetSequence\""),
        (reasons, "REASON_AUDIT_LAG = 27", "REASON_AUDIT_LAG = 28000", "Previously present enum value \"27\""),
    ] {
        let copy = TempDir::with_prefix("quotesign-proto-").unwrap();
        fs::copy(repository("buf.yaml"), copy.path().join("buf.yaml")).unwrap();
        copied(&repository("proto"), &copy.path().join("proto"));
        done(buf(copy.path(), &BREAKING));
        let path = copy.path().join("proto").join(file);
        let text = fs::read_to_string(&path).unwrap();
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from} is not there");
        fs::write(path, changed).unwrap();
        let told = buf(copy.path(), &BREAKING);
        let text = String::from_utf8(told.stdout).unwrap();
        assert!(told.status.code() == Some(100) && text.contains(expected), "{from} -> {to}: {text}");
    }
}

/// Another RPC, message, field or reason breaks nobody.
#[test]
fn buf_lets_what_is_added_pass() {
    let copy = TempDir::with_prefix("quotesign-proto-").unwrap();
    fs::copy(repository("buf.yaml"), copy.path().join("buf.yaml")).unwrap();
    copied(&repository("proto"), &copy.path().join("proto"));
    let path = copy.path().join("proto/quotesign/v1/quote_signing.proto");
    let more = "rpc TryQuote(TryQuoteRequest) returns (TryQuoteResponse);\n  // Tells where";
    let text = fs::read_to_string(&path).unwrap().replacen("// Tells where", more, 1);
    fs::write(path, text + "\nmessage TryQuoteRequest {}\nmessage TryQuoteResponse {}\n").unwrap();
    done(buf(copy.path(), &BREAKING));
}

fn copied(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copied(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// With `UPDATE=1` it writes the page anew; `make api-docs` does that.
#[test]
fn the_reference_is_what_the_proto_says() {
    let page = Reference::of_the_proto().page();
    let file = repository("docs/api.md");
    if env::var_os("UPDATE").is_some() {
        fs::write(&file, &page).unwrap();
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    assert!(kept == page, "docs/api.md is not what proto/ says: run `make api-docs`");
}

#[test]
fn everything_in_the_proto_is_explained() {
    let reference = Reference::of_the_proto();
    let mut bare = Vec::new();
    for file in &reference.files {
        for (path, name) in members(file) {
            // A message that is a request or an answer is explained by its method.
            let is_message = path.len() == 2 && path[0] == FILE_MESSAGES;
            if !is_message && reference.comment(file, &path).is_empty() {
                bare.push(name);
            }
        }
    }
    assert!(bare.is_empty(), "without a comment: {bare:?}");
}

/// Everything that can bear a comment, by its path in the file and its name.
fn members(file: &FileDescriptorProto) -> Vec<(Vec<i32>, String)> {
    let mut found = Vec::new();
    let mut add = |kind: i32, at: usize, name: &str, members: Vec<&str>| {
        let path = vec![kind, number(at)];
        for (member, of) in members.into_iter().enumerate() {
            found.push(([&*path, &[MEMBERS, number(member)]].concat(), format!("{name}.{of}")));
        }
        found.push((path, name.to_owned()));
    };
    for (at, service) in file.service.iter().enumerate() {
        add(FILE_SERVICES, at, service.name(), service.method.iter().map(MethodDescriptorProto::name).collect());
    }
    for (at, message) in file.message_type.iter().enumerate() {
        assert!(message.nested_type.is_empty() && message.enum_type.is_empty(), "the reference knows no nesting");
        add(FILE_MESSAGES, at, message.name(), message.field.iter().map(FieldDescriptorProto::name).collect());
    }
    for (at, of) in file.enum_type.iter().enumerate() {
        add(FILE_ENUMS, at, of.name(), of.value.iter().map(prost_types::EnumValueDescriptorProto::name).collect());
    }
    found
}

fn number(at: usize) -> i32 {
    i32::try_from(at).unwrap()
}

/// The page, and what it is made of.
struct Reference {
    files: Vec<FileDescriptorProto>,
    comments: HashMap<(String, Vec<i32>), String>,
    /// In how many places a message stands: as a request, an answer or a field.
    uses: BTreeMap<String, usize>,
}

const HEAD: &str = "# API reference

Made from the comments of [`proto/quotesign/v1`](../proto/quotesign/v1) by `make api-docs`; change it there. What a quote must look
like is in [the quote contract](quote-contract.md), what a client has to do in [Writing a client](clients.md).

The package is `quotesign.v1`. All calls are gRPC over mutual TLS 1.3. Every refusal carries a `google.rpc.ErrorInfo` with one of
the [reasons](#reasons). A string, number or list that is not set is empty or zero; `optional` fields tell the two apart.
";

impl Reference {
    fn of_the_proto() -> Self {
        let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap().file;
        let mut files: Vec<_> = files.into_iter().filter(|file| file.package() == "quotesign.v1").collect();
        // What most readers look for comes first.
        let order = ["quote_signing", "key_directory", "admin", "reason"];
        files.sort_by_key(|file| order.iter().position(|name| file.name() == format!("quotesign/v1/{name}.proto")));
        let mut comments = HashMap::new();
        let mut uses = BTreeMap::new();
        for file in &files {
            for location in file.source_code_info.iter().flat_map(|info| &info.location) {
                comments
                    .insert((file.name().to_owned(), location.path.clone()), location.leading_comments().to_owned());
            }
            let methods = file.service.iter().flat_map(|service| &service.method);
            let ends = methods.flat_map(|method| [method.input_type(), method.output_type()]);
            let fields =
                file.message_type.iter().flat_map(|message| &message.field).map(FieldDescriptorProto::type_name);
            for name in ends.chain(fields) {
                *uses.entry(short(name).to_owned()).or_default() += 1;
            }
        }
        Self { files, comments, uses }
    }

    /// In one paragraph, fit for a cell of a table.
    fn comment(&self, file: &FileDescriptorProto, path: &[i32]) -> String {
        let text = self.comments.get(&(file.name().to_owned(), path.to_vec())).map_or("", String::as_str);
        text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
    }

    fn page(&self) -> String {
        let mut page = HEAD.to_owned();
        page.push_str("\n| service | method | what it does |\n|---|---|---|\n");
        for (file, service) in
            self.files.iter().flat_map(|file| file.service.iter().map(move |service| (file, service)))
        {
            let at = file.service.iter().position(|other| other == service).unwrap();
            for (number_of, method) in service.method.iter().enumerate() {
                let about = self.comment(file, &[FILE_SERVICES, number(at), MEMBERS, number(number_of)]);
                let first = about.split_once(". ").map_or(&*about, |(first, _)| first).trim_end_matches('.');
                let name = method.name();
                writeln!(page, "| `{}` | [{name}](#{}) | {first}. |", service.name(), name.to_lowercase()).unwrap();
            }
        }
        for file in &self.files {
            self.services(file, &mut page);
        }
        self.shared(&mut page);
        self.enums(&mut page);
        page
    }

    fn services(&self, file: &FileDescriptorProto, page: &mut String) {
        for (at, service) in file.service.iter().enumerate() {
            let about = self.comment(file, &[FILE_SERVICES, number(at)]);
            write!(page, "\n## {}\n\n{about}\n", service.name()).unwrap();
            for (number_of, method) in service.method.iter().enumerate() {
                let about = self.comment(file, &[FILE_SERVICES, number(at), MEMBERS, number(number_of)]);
                write!(page, "\n### {}\n\n{about}\n", method.name()).unwrap();
                self.end("Request", method.input_type(), method.client_streaming(), page);
                self.end("Answer", method.output_type(), method.server_streaming(), page);
            }
        }
    }

    /// A method's request or answer: its fields, or where they are if others have it too.
    fn end(&self, what: &str, name: &str, is_stream: bool, page: &mut String) {
        let (name, stream) = (short(name), if is_stream { "a stream of " } else { "" });
        if self.uses[name] > 1 {
            write!(page, "\n{what}: {stream}{}.\n", self.link(name)).unwrap();
            return;
        }
        let (file, at, message) = self.message(name).unwrap();
        let about = self.comment(file, &[FILE_MESSAGES, number(at)]);
        let about = if about.is_empty() { about } else { format!(" {about}") };
        if message.field.is_empty() {
            write!(page, "\n{what}: {stream}`{name}`, without fields.{about}\n").unwrap();
        } else {
            write!(page, "\n{what}: {stream}`{name}`.{about}\n\n").unwrap();
            self.fields(file, at, message, page);
        }
    }

    fn fields(&self, file: &FileDescriptorProto, at: usize, message: &DescriptorProto, page: &mut String) {
        page.push_str("| field | type | number | |\n|---|---|---|---|\n");
        for (number_of, field) in message.field.iter().enumerate() {
            let mut about = self.comment(file, &[FILE_MESSAGES, number(at), MEMBERS, number(number_of)]);
            if let Some(of) = field.oneof_index.filter(|_| !field.proto3_optional()) {
                let of = message.oneof_decl[usize::try_from(of).unwrap()].name();
                about = format!("One of `{of}`. {about}");
            }
            writeln!(page, "| `{}` | {} | {} | {about} |", field.name(), self.type_of(field), field.number()).unwrap();
        }
    }

    fn type_of(&self, field: &FieldDescriptorProto) -> String {
        let name = match field.r#type() {
            Type::Message | Type::Enum => self.link(short(field.type_name())),
            scalar => format!("`{}`", scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase()),
        };
        if field.label() == Label::Repeated {
            format!("list of {name}")
        } else if field.proto3_optional() {
            format!("optional {name}")
        } else {
            name
        }
    }

    fn link(&self, name: &str) -> String {
        let known = self.message(name).is_some()
            || self.files.iter().any(|file| file.enum_type.iter().any(|of| of.name() == name));
        if known { format!("[`{name}`](#{})", name.to_lowercase()) } else { format!("`{name}`") }
    }

    fn message(&self, name: &str) -> Option<(&FileDescriptorProto, usize, &DescriptorProto)> {
        self.files.iter().find_map(|file| {
            let (at, message) = file.message_type.iter().enumerate().find(|(_, message)| message.name() == name)?;
            Some((file, at, message))
        })
    }

    /// Messages that stand in others, or with more than one method.
    fn shared(&self, page: &mut String) {
        page.push_str("\n## Messages\n");
        let ends = |name: &str| {
            let methods = self.files.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
            methods.filter(|method| [method.input_type(), method.output_type()].map(short).contains(&name)).count()
        };
        for file in &self.files {
            for (at, message) in file.message_type.iter().enumerate() {
                let uses = self.uses.get(message.name()).copied().unwrap_or_default();
                if uses == 1 && ends(message.name()) == 1 {
                    continue;
                }
                write!(page, "\n### {}\n\n", message.name()).unwrap();
                let about = self.comment(file, &[FILE_MESSAGES, number(at)]);
                if !about.is_empty() {
                    write!(page, "{about}\n\n").unwrap();
                }
                self.fields(file, at, message, page);
            }
        }
    }

    fn enums(&self, page: &mut String) {
        page.push_str("\n## Enums\n");
        let all =
            || self.files.iter().flat_map(|file| file.enum_type.iter().enumerate().map(move |(at, of)| (file, at, of)));
        for (file, at, of) in all().filter(|(.., of)| of.name() != "Reason") {
            write!(page, "\n### {}\n\n{}\n\n", of.name(), self.comment(file, &[FILE_ENUMS, number(at)])).unwrap();
            self.values(file, at, of, "", page);
        }
        page.push_str("\n## Reasons\n\n");
        for (file, at, of) in all().filter(|(.., of)| of.name() == "Reason") {
            write!(page, "{}\n\n", self.comment(file, &[FILE_ENUMS, number(at)])).unwrap();
            self.values(file, at, of, "REASON_", page);
        }
    }

    fn values(&self, file: &FileDescriptorProto, at: usize, of: &EnumDescriptorProto, prefix: &str, page: &mut String) {
        page.push_str("| value | number | |\n|---|---|---|\n");
        for (number_of, value) in of.value.iter().enumerate() {
            let about = self.comment(file, &[FILE_ENUMS, number(at), MEMBERS, number(number_of)]);
            let name = value.name().trim_start_matches(prefix);
            writeln!(page, "| `{name}` | {} | {about} |", value.number()).unwrap();
        }
    }
}

/// A type's name without its package, or with it where that is another's.
fn short(name: &str) -> &str {
    name.trim_start_matches(".quotesign.v1.").trim_start_matches('.')
}
