# wan-tpu's environment by Nix: Python, uv and the system's libraries from nixpkgs, every Python package
# from requirements/*.txt at its exact version and hash. From the top of the checkout:
#
#     nix develop ./deploy/nix                        # a shell with .venv, for training on the CPU or a GPU
#     nix develop ./deploy/nix#slice                  # the same for a TPU
#     nix run ./deploy/nix -- train /tmp/wan-tpu      # LIST and FOLDER: the environment alone
{
  description = "Wan's video models on TPU slices: the environment, over lists of exact versions";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-25.05";

  outputs =
    { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      forEach = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      lists = [ "library" "server" "train" "slice" "fleet" "fleet-demo" "cuda" "dev" ];
      # Wheels bring their own code, but for what every Linux of theirs is expected to have.
      libraries = pkgs: nixpkgs.lib.makeLibraryPath [ pkgs.stdenv.cc.cc.lib pkgs.zlib ];
      tools = pkgs: [ pkgs.python311 pkgs.uv pkgs.bash pkgs.coreutils pkgs.gnumake pkgs.git ];
      variables = pkgs: ''
        export UV=${pkgs.uv}/bin/uv PYTHON=${pkgs.python311}/bin/python3
        export UV_PYTHON_DOWNLOADS=never
        export LD_LIBRARY_PATH=${libraries pkgs}:/run/opengl-driver/lib''${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
      '';
      shell =
        pkgs: list:
        pkgs.mkShellNoCC {
          packages = tools pkgs;
          shellHook = ''
            ${variables pkgs}
            [ -x deploy/environment.sh ] || { echo "run it from the top of the checkout" >&2; exit 1; }
            deploy/environment.sh ${list} .venv --editable
            export PATH=$PWD/.venv/bin:$PATH
          '';
        };
      program =
        pkgs:
        pkgs.writeShellScriptBin "wan-tpu-environment" ''
          ${variables pkgs}
          export PATH=${nixpkgs.lib.makeBinPath (tools pkgs)}:$PATH
          exec bash ${self.sourceInfo.outPath}/deploy/environment.sh "$@"
        '';
    in
    {
      devShells = forEach (
        pkgs: nixpkgs.lib.genAttrs lists (shell pkgs) // { default = shell pkgs "train"; }
      );
      packages = forEach (pkgs: { default = program pkgs; });
    };
}
