fn main() -> std::process::ExitCode {
    hookward::main()
}
