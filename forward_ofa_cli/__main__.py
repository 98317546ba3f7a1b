from forward_ofa_cli.main import main

if __name__ == "__main__":
    main()
